"""Small trainings with the G-effect probe, for tests and for the processes they start."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from tests.unlearn.training import small_training as training
from unlearn.config import HardwareConfig, MethodConfig, RunConfig
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder
from unlearn.distributed import stop_world
from unlearn.probes import WatchedRun, make
from unlearn.probes.geffect import Geffect
from unlearn.training.observers import Observers
from unlearn.training.trainer import Trainer

FEW: dict[str, Any] = {"examples": 7, "points": 3}
"""An odd number, which two processes cannot share evenly."""


def tokenizer() -> PreTrainedTokenizerFast:
    """One word for each of the tiny model's tokens."""
    words = {f"w{i}": i for i in range(97)}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="w0")), pad_token="w0"
    )


def probe_on(trainer: Trainer, directory: Path, **keys: Any) -> Geffect:
    """A probe of the trainer's run over whole sets, unless `keys` of its configuration say otherwise."""
    groups = {**{name: training.everything()[name] for name in ("forget", "retain")}, **trainer.data.groups}
    sets = {name: [Example(key, "that", "what?") for key in group.ids] for name, group in groups.items()}
    config = RunConfig.model_validate(
        {
            "model": {"name": "tiny"}, "dataset": {"name": "made", "source": "custom"},
            "method": trainer.settings.method, "hardware": trainer.settings.hardware,
            "seed": trainer.data.seed,
            "probe": {"name": "geffect", "every": 2, "examples": None, "points": 4, "grid": 2} | keys,
        }
    )  # fmt: skip
    encoder = Encoder(tokenizer())
    probe = make(WatchedRun(config, trainer.engine, trainer.terms, groups, sets, encoder, directory))
    assert isinstance(probe, Geffect)
    if trainer.steps_made == 0:
        probe.begin()
    return probe


def look(
    folder: Path, method: MethodConfig, hardware: Mapping[str, Any] | None = None, *, spread: float = 0.3,
    **keys: Any,
) -> dict[str, float]:  # fmt: skip
    """What the probe sees at the tiny model before any step."""
    trainer = training.make_trainer(folder, HardwareConfig(**hardware or {}), method=method, spread=spread)
    seen = probe_on(trainer, folder, **keys).measure(trainer.probe_context())
    trainer.engine.close()
    return seen


def watched(
    folder: Path, hardware: Mapping[str, Any], method: MethodConfig, **keys: Any
) -> dict[str, Tensor]:
    """Final weights of a training that is watched."""
    trainer = training.make_trainer(folder, HardwareConfig(**hardware), method=method, spread=0.3)
    trainer.observers = Observers(probe=probe_on(trainer, folder, **keys))
    trainer.run()
    weights = {name: tensors["weight"] for name, tensors in trainer.engine.state() if tensors}
    trainer.engine.close()
    return weights


def run(file: Path) -> None:
    """Look once, and train watched and unwatched, in each case of a JSON file; the first process writes."""
    for name, case in json.loads(file.read_text()).items():
        method, hardware = training.preset(case["method"], epochs=1), case["hardware"]
        seen = look(file.parent / f"{name}-look", method, hardware, second_order=True, **FEW)
        after = watched(file.parent / f"{name}-watched", hardware, method, **FEW, every=3)
        plain = training.train(
            file.parent / f"{name}-plain", HardwareConfig(**hardware), method=method, spread=0.3
        )
        if after:
            (file.parent / f"{name}.json").write_text(json.dumps(seen))
            save_file(after, file.parent / f"{name}-watched.safetensors")
            save_file(plain, file.parent / f"{name}-plain.safetensors")
    stop_world()
