"""One process of a run: `python -m launch.worker RUN_DIRECTORY`, or a call in the command's own process."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from omegaconf import OmegaConf

from launch.geffect.files import tracked
from launch.tracking import NullTracker, Tracker, open_tracker
from unlearn.config import RunConfig
from unlearn.errors import UserError
from unlearn.run import Beside, Job, Weights, execute
from unlearn.rundir import RunDir
from unlearn.trainer import Stopped

log = logging.getLogger(__name__)

_SAMPLES = 20  # generations of each set that go to the tracker; all are in examples.parquet
_TEXTS = ("set", "id", "group", "question", "answer", "generation", "prediction")
STOPPED = 75
"""Exit code of a run that a signal stopped after its checkpoint (sysexits' EX_TEMPFAIL: try again)."""


def work(directory: Path, *, progress: bool = True) -> dict[str, float]:
    """Execute the run that `config.yaml` in the directory describes, as one of its processes."""
    rundir = RunDir(directory)
    stored = read_job(rundir)
    main = os.environ.get("RANK", "0") == "0"
    with logging_to(rundir.log if main else None):
        tracker = _tracker(stored, rundir) if main else NullTracker()
        code = 1
        try:
            summary = execute(stored, rundir, tracker, progress=progress)
            if main:
                _show(tracker, rundir, summary)
            code = 0
            return summary
        except Stopped as stopped:
            log.warning("%s", stopped)
            raise
        except Exception as error:
            log.error("%s: %s", type(error).__name__, error, exc_info=not isinstance(error, UserError))
            raise
        finally:
            tracker.finish(code)


def read_job(rundir: RunDir) -> Job:
    """The job of a run directory."""
    stored = OmegaConf.to_container(OmegaConf.load(rundir.config))
    assert isinstance(stored, dict)
    config = RunConfig.model_validate({k: v for k, v in stored.items() if k in RunConfig.model_fields})
    job: dict[str, Any] = stored["job"]
    beside = Beside(**{name: Path(path) if path else None for name, path in job["beside"].items()})
    reinforced = Weights(**job["reinforced"]) if job["reinforced"] else None
    return Job(config, stored["fingerprint"], Weights(**job["start"]), beside, reinforced)


@contextmanager
def logging_to(file: Path | None) -> Iterator[None]:
    """Log records of this run go to its file; without one, warnings and worse to standard error."""
    root = logging.getLogger()
    before = root.level
    handlers: list[logging.Handler] = []
    if file is not None:
        handlers.append(logging.FileHandler(file, encoding="utf-8"))
        handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        for noisy in ("DeepSpeed", "accelerate", "httpx", "filelock", "fsspec", "urllib3"):
            logging.getLogger(noisy).setLevel(logging.WARNING)
        root.setLevel(logging.INFO)
    for handler in handlers:
        root.addHandler(handler)
    try:
        yield
    finally:
        for handler in handlers:
            root.removeHandler(handler)
            handler.close()
        root.setLevel(before)


def _tracker(job: Job, rundir: RunDir) -> Tracker:
    config = job.config
    settings = config.tracker
    return open_tracker(
        mode=settings.mode,
        project=settings.project,
        entity=settings.entity,
        group=settings.group or os.environ.get("UNLEARN_SWEEP"),
        job_type=config.method.name,
        name=rundir.path.name,
        run_id=job.fingerprint,
        tags=[config.model.name, config.dataset.name, config.method.name, *settings.tags],
        config=without_home(config.model_dump(mode="json", exclude={"root", "dry_run", "tracker"})),
        directory=rundir.path,
    )


def _show(tracker: Tracker, rundir: RunDir, summary: Mapping[str, float]) -> None:
    """The results as summary and table, samples of what was generated, and what a probe saw last."""
    tracker.summary(summary)
    tracker.table("results", ["metric", "value"], [[key, value] for key, value in summary.items()])
    for file in sorted(rundir.eval.glob("*/examples.parquet")):
        columns = _columns(pq.read_schema(file))
        if "set" not in columns:  # no example at all
            continue
        shown: dict[str, list[list[Any]]] = {}
        for row in pq.read_table(file, columns=columns).to_pylist():
            shown.setdefault(row["set"], []).append([row[column] for column in columns])
        sample = [row for group in shown.values() for row in group[:_SAMPLES]]
        kind = "generations" if "generation" in columns else "examples"
        tracker.table(f"{file.parent.name}/{kind}", columns, sample)
    for name, columns, rows in tracked(rundir.path):
        tracker.table(name, columns, rows)


def _columns(schema: pa.Schema) -> list[str]:
    """Those of a benchmark's rows that a table shows: what was asked and said, and every number."""
    texts = [name for name in _TEXTS if name in schema.names]
    return texts + [field.name for field in schema if pa.types.is_floating(field.type)]


def without_home(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with the home directory as `~` in every text."""
    home = str(Path.home())

    def clean(value: Any) -> Any:
        if isinstance(value, str):
            return value.replace(home, "~") if len(home) > 1 else value
        if isinstance(value, Mapping):
            return without_home(value)
        return [clean(v) for v in value] if isinstance(value, list | tuple) else value

    return {key: clean(value) for key, value in values.items()}


def main() -> None:
    """Entry point of the processes that `launch.processes` starts."""
    # Ctrl-C reaches the whole process group; the trainer's own handler stops it after a checkpoint.
    try:
        work(Path(sys.argv[1]))
    except Stopped:
        sys.exit(STOPPED)
    except UserError as error:
        if os.environ.get("RANK", "0") == "0":
            sys.stderr.write(f"{error}\n")
        sys.exit(2)


if __name__ == "__main__":
    main()
