"""Make the probe of a run, and measure saved models with it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from unlearn.config import RunConfig
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder
from unlearn.probes.geffect import GEffect
from unlearn.probes.saved import numbered
from unlearn.rules import make_rule
from unlearn.run_dir import RunDir
from unlearn.terms import Term
from unlearn.training.engine import Engine
from unlearn.training.observers import Logger, ProbeContext
from unlearn.training.step_data import Frozen, Group


def make_probe(
    config: RunConfig, engine: Engine, terms: Sequence[Term], groups: Mapping[str, Group],
    sets: Mapping[str, list[Example]], encoder: Encoder, rundir: RunDir,
) -> GEffect:  # fmt: skip
    """Make the probe of a run; `groups` hold the answers of the sets that it measures."""
    return GEffect(
        config.probe, engine, terms, groups, config.hardware, config.method.batch, config.seed,
        encoder.tokenizer,
        {name: {e.id: (e.question, e.answer) for e in sets[name]} for name in groups},
        rundir.probe, encoder.pad_id,
    )  # fmt: skip


def measure_saved(
    config: RunConfig, folders: Sequence[Path], engine_of: Callable[[str | None], Engine],
    probe_of: Callable[[Engine], GEffect], frozen: Frozen, rundir: RunDir, tracker: Logger,
) -> None:  # fmt: skip
    """Measure each of the models, or the target if there are none; steps already in the history are skipped.

    `engine_of` loads a folder's model, for None the target, from which distances are measured.
    """
    models: list[tuple[int, str | None]] = [(0, None)]
    if folders:
        models = list(zip(numbered(folders), (str(folder) for folder in folders), strict=True))
    target = engine_of(None)
    known = target.world.on_main(lambda: [row["step"] for row in rundir.read_history()])
    first = probe_of(target)
    first.start.keep()
    rate = config.method.rate(config.model.lr_scale)
    engine = target
    for step, folder in models:
        if step in known:
            continue
        if folder is not None:
            engine.close()
            gc.collect()
            engine = engine_of(folder)
        rule = make_rule(**config.method.rule.model_dump())
        measured = probe_of(engine).measure(ProbeContext(step, rate, rule, frozen))
        if measured and target.world.main:
            rundir.append_history({"step": step, **measured})
            tracker.log(measured, step)
    engine.close()
