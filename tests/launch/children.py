"""Commands in processes of their own that begin at once: forked from one that has imported everything.

`python -m tests.launch.children` is that one. It has run nothing, so that nothing of it but its modules is in
them; the system's signals reach each of them alone.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.launch.commands import Shown
from tests.paths import ROOT

LIMIT = 120.0  # seconds until something must have happened
_ENVIRONMENT = {"WANDB_MODE": "offline", "COLUMNS": "200", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
_PRELOADED = (
    "launch.validate", "launch.cli", "launch.sweep.job", "launch.run.plan",
    "launch.run.ensure", "launch.report.page", "launch.report.run_files", "launch.report.results_table",
    "launch.run.worker", "unlearn.data.sources.authors", "launch.run.execute",
    "eval.benchmarks.tofu", "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.ops.op_builder.all_ops", "transformers.models.llama.modeling_llama", "nltk",
    "rouge_score.rouge_scorer", "plotly.graph_objects",
)  # fmt: skip


@dataclass(frozen=True)
class Child:
    """A command that was begun, with the files that it prints to."""

    pid: int
    out: Path
    err: Path
    _ask: Callable[[Mapping[str, Any]], Any]

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def code(self) -> int | None:
        """The exit code, negative for a signal; None while it works. Of the first to ask after its end."""
        return self._ask({"poll": self.pid})

    def ended(self) -> Shown:
        return Shown(self._ask({"wait": self.pid}), self.out.read_text(), self.err.read_text())

    def until(self, sign: Callable[[], bool]) -> bool:
        """Wait for a sign; False if the command ended before it."""
        deadline = time.monotonic() + LIMIT
        while not sign():
            assert time.monotonic() < deadline, "nothing happens"
            # A process that has ended is a zombie until it is asked for.
            if Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return sign()
            time.sleep(0.002)
        return True


def _inherited() -> dict[str, str]:
    """Without the W&B service that other tests may have begun in this process: children have their own."""
    return {name: value for name, value in os.environ.items() if name != "WANDB_SERVICE"}


class Nursery:
    """Where children come from."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._count = folder, 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.launch.children"], text=True, cwd=ROOT,
            env=_inherited() | _ENVIRONMENT, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(
        self,
        cwd: Path,
        *arguments: str,
        before: str | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> Child:
        """Begin the command there with further variables; `before` names a function (module:function) to be
        called first."""
        self._count += 1
        out, err = (self._folder / f"{self._count}.{name}" for name in ("out", "err"))
        for file in (out, err):
            file.touch()  # they are read before the child has opened them
        asked: dict[str, Any] = {
            "cwd": str(cwd),
            "arguments": arguments,
            "out": str(out),
            "err": str(err),
            "before": before,
        }
        asked["environment"] = dict(environment or {})
        return Child(self._ask({"start": asked}), out, err, self._ask)

    def close(self) -> None:
        assert self._server.stdin is not None
        self._server.stdin.close()
        self._server.wait(LIMIT)

    def _ask(self, question: Mapping[str, Any]) -> Any:
        assert self._server.stdin is not None
        assert self._server.stdout is not None
        self._server.stdin.write(json.dumps(question) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())


def _serve() -> None:
    for name in _PRELOADED:
        with contextlib.suppress(ImportError):  # of another release of a package
            importlib.import_module(name)
    gc.collect()
    gc.freeze()
    for line in sys.stdin:
        asked = json.loads(line)
        if "start" in asked:
            answer: int | None = os.fork()
            if answer == 0:
                _work(**asked["start"])
        else:
            pid, status = os.waitpid(
                *((asked["wait"], 0) if "wait" in asked else (asked["poll"], os.WNOHANG))
            )
            answer = os.waitstatus_to_exitcode(status) if pid else None
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


def _work(
    cwd: str, arguments: list[str], out: str, err: str, before: str | None, environment: dict[str, str]
) -> None:
    code = 1
    try:
        for number, name in ((1, out), (2, err)):
            os.dup2(os.open(name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.chdir(cwd)
        os.environ.update(environment)
        if before is not None:
            module, _, function = before.partition(":")
            getattr(importlib.import_module(module), function)()
        from launch.cli import command

        code = command(arguments)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
