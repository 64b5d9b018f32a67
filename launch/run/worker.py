"""Work as one process of a run: `python -m launch.run.worker RUN_DIRECTORY`, or a call of `work`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from launch.redact import ScrubbedFormatter, scrub_output
from launch.run.config_file import read_job
from launch.run.log_warnings import LOG_FORMAT
from launch.run.worker_processes import log_of
from launch.tracking.run_tracker import send, tracker_of
from launch.tracking.tracker import NullTracker
from unlearn.errors import UserError
from unlearn.garbage import pause_collection
from unlearn.guard import FAILED, is_logged, lasting_output, mark_logged, outcome
from unlearn.run_dir import RunDir
from unlearn.signals import STOPPED, StartAgain, Stopped, stop_with_parent

log = logging.getLogger("launch.run.worker")  # the same name as the main module


def work(directory: Path, *, progress: bool = True) -> dict[str, float]:
    """Execute the run that `config.yaml` in the directory describes, as one of its processes."""
    from launch.run.execute import execute  # torch and DeepSpeed: after `pause_collection`

    rundir = RunDir(directory)
    job, role = read_job(rundir)
    main = os.environ.get("RANK", "0") == "0"
    with logging_to(rundir.log if main else None):
        tracker = tracker_of(job, role, rundir) if main else NullTracker()
        code = 1
        try:
            if not isinstance(tracker, NullTracker):
                with suppress(OSError):  # so that the next process sends results that a killed one has not
                    rundir.unsent.touch()
            summary = execute(job, rundir, tracker, progress=progress)
            if not isinstance(tracker, NullTracker):
                send(tracker, job, role, rundir, summary)
            code = 0
            return summary
        except (Stopped, StartAgain) as ended:
            log.warning("%s", ended)
            raise
        except Exception as error:
            log.error("%s: %s", type(error).__name__, error, exc_info=not isinstance(error, UserError))
            mark_logged(error, rundir.log if main else log_of(directory, int(os.environ["RANK"])))
            raise
        finally:
            tracker.finish(code)


class _LogFile(logging.FileHandler):
    """A log that loses lines where the disk is full, rather than print each error of writing one."""

    def handleError(self, record: logging.LogRecord) -> None:
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


@contextmanager
def logging_to(file: Path | None) -> Iterator[None]:
    """Send log records to a file; without one, warnings and errors to standard error."""
    root = logging.getLogger()
    before = root.level
    handlers: list[logging.Handler] = []
    if file is not None:
        handlers.append(_LogFile(file, encoding="utf-8"))
        handlers[0].setFormatter(ScrubbedFormatter(LOG_FORMAT))
        for noisy in ("DeepSpeed", "accelerate", "httpx", "filelock", "fsspec", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        root.setLevel(logging.INFO)
    else:
        handlers.append(logging.StreamHandler())
        handlers[0].setFormatter(logging.Formatter(LOG_FORMAT))
        handlers[0].setLevel(logging.WARNING)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            with suppress(OSError):  # of a full disk the run has its own error
                handler.close()
        root.setLevel(before)


def main() -> None:
    """Entry point of the processes that `launch.run.worker_processes` starts."""
    main_process = os.environ.get("RANK", "0") == "0"
    stop_with_parent()
    lasting_output()
    pause_collection()
    if not main_process:
        scrub_output()  # the output goes to a log
    # Ctrl-C reaches the whole process group; the trainer's signal handler stops it after a checkpoint.
    try:
        if len(sys.argv) != 2:
            raise UserError(
                "one process of a run, which the command starts: python -m launch.run.worker RUN_DIRECTORY"
            )
        work(Path(sys.argv[1]))
    except Stopped:
        _end(STOPPED)
    except StartAgain:  # the supervisor sees it by the run's limits: this code may not be the first to arrive
        _end(FAILED)
    except Exception as error:
        text, code = outcome(error)
        if not is_logged(error):  # the command prints logged errors
            sys.stderr.write(f"{text}\n")
        _end(code)


def _end(code: int) -> NoReturn:
    """End this process; one of several without destructors, of which NCCL's may wait for the others."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


if __name__ == "__main__":
    main()
