"""Measure saved models with a probe."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from unlearn.config import RunConfig
from unlearn.garbage import free_memory
from unlearn.probes._base import Probe
from unlearn.probes._model_folders import steps_of
from unlearn.rules import make_rule
from unlearn.run_dir import RunDir
from unlearn.training.engine import Engine
from unlearn.training.observers import Logger, ProbeContext
from unlearn.training.step_data import Frozen


def measure_saved(
    config: RunConfig, folders: Sequence[Path], engine_of: Callable[[str | None], Engine],
    probe_of: Callable[[Engine], Probe], frozen: Frozen, rundir: RunDir, tracker: Logger,
) -> None:  # fmt: skip
    """Measure each of the models, or the target if there are none; steps already in the history are skipped.

    `engine_of` loads a folder's model, for None the target, at which the probe begins.
    """
    models: list[tuple[int, str | None]] = [(0, None)]
    if folders:
        models = list(zip(steps_of(folders), (str(folder) for folder in folders), strict=True))
    engine: Engine | None = engine_of(None)
    assert engine is not None
    world = engine.world
    known = world.on_main(lambda: [row["step"] for row in rundir.read_history()])
    probe_of(engine).begin()
    rate = config.method.rate(config.model.lr_scale)
    for step, folder in models:
        if step in known:
            continue
        if folder is not None:
            engine.close()
            engine = None  # its model goes before the next is loaded
            free_memory()
            engine = engine_of(folder)
        rule = make_rule(**config.method.rule.model_dump())
        measured = probe_of(engine).measure(ProbeContext(step, rate, rule, frozen))
        if measured and world.main:
            rundir.append_history({"step": step, **measured})
            tracker.log(measured, step)
    engine.close()
