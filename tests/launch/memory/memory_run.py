"""Trainings whose memory is measured, one after the other: prints their bytes, a line for each.

`python -m tests.launch.memory.memory_run COMMON… -- OVERRIDE… -- OVERRIDE…`

What is measured is the resident memory that comes on top of what is there right before the model is made.
"""

from __future__ import annotations

import gc
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from launch.compose import checked, compose_run, force_overrides
from launch.dry_run import load_of
from launch.memory.estimate import estimate, shape_of
from launch.run.config_file import read_job, write_config
from launch.run.execute import execute
from launch.run.plan import make_plan
from unlearn.models import load as models
from unlearn.training.trainer import Trainer


class _Silent:
    def log(self, row: Any, step: int) -> None: ...


def _status(key: str) -> int:
    """Return a line of this process's status, in bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(key)) * 1024


def _run(*overrides: str) -> dict[str, Any]:
    config = checked(compose_run(force_overrides(overrides)))
    (run,) = make_plan(config).runs
    run.directory.mkdir(parents=True)
    write_config(run)
    shape = shape_of(config)
    assert shape is not None
    expected = estimate(shape, config, load_of(config))
    seen: dict[str, int] = {}
    load, train = models.read_model, Trainer.run

    def watched_load(*arguments: Any, **named: Any) -> Any:
        gc.collect()
        seen.setdefault("before", _status("VmRSS"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
        return load(*arguments, **named)

    def watched_train(trainer: Trainer) -> None:
        train(trainer)
        seen["peak"] = _status("VmHWM")

    models.read_model, Trainer.run = watched_load, watched_train  # type: ignore[method-assign, assignment]
    try:
        execute(read_job(run.rundir)[0], run.rundir, _Silent(), progress=False)
    finally:
        models.read_model, Trainer.run = load, train  # type: ignore[method-assign]
    measured = seen["peak"] - seen["before"]
    return {**vars(expected), "estimate": expected.device + expected.host, "measured": measured}


def main() -> None:
    common, *each = " ".join(sys.argv[1:]).split(" -- ")
    for given in each:
        overrides = [*common.split(), *given.split(), f"root={tempfile.mkdtemp()}"]
        # What is imported and compiled at first use is no part of a training's memory.
        _run(*overrides, "model.nano.hidden_size=32", "model.nano.layers=1", "model.nano.heads=2")
        sys.stdout.write(json.dumps(_run(*overrides)) + "\n")


if __name__ == "__main__":
    main()
