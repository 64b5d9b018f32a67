"""One small training of a two-layer Llama, for the tests and for the processes they start.

Of any method: alternative answers, annotated spans and what frozen models give are there for all sets.

`run(FILE)` runs the cases in FILE (JSON) as one process of a world given by torchrun's environment variables
and lets the first process write the result next to it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from tests.paths import ROOT
from unlearn import interventions
from unlearn.config import CheckpointConfig, HardwareConfig, MethodConfig
from unlearn.data.tokenization import TokenSequence
from unlearn.distributed import World, start_world, stop_world
from unlearn.models.adapt import train_only
from unlearn.rules import clip_norm
from unlearn.run_dir import RunDir
from unlearn.statistics import STATISTICS
from unlearn.terms import Term, bind, needs_direction
from unlearn.training import frozen_outputs, optimizers
from unlearn.training.engine import Engine
from unlearn.training.frozen_outputs import LOGP, FrozenOutput
from unlearn.training.interruption import Checkpoints
from unlearn.training.observers import History
from unlearn.training.step_data import (
    Frozen,
    Group,
    Part,
    TrainingData,
    frozen_output,
    frozen_outputs_for,
)
from unlearn.training.trainer import Trainer, TrainSettings

METHOD = MethodConfig(
    name="npo", forget={"objective": "npo", "beta": 0.1}, retain={"objective": "nll"}, retain_weight=0.5,
    lr=1e-2, batch=8, epochs=3, warmup_epochs=1, clip=0.5,
)  # fmt: skip


class Silent:
    def log(self, row: Any, step: int) -> None: ...


PRESETS = ROOT / "configs" / "method"
LAYERS = 2


def tiny_llama(seed: int = 0, spread: float = 0.02) -> LlamaForCausalLM:
    """With a larger `spread` of the weights logits are far from uniform."""
    torch.manual_seed(seed)
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 56,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 2,
    }
    # An odd vocabulary: nothing divides evenly over two processes.
    config = LlamaConfig(vocab_size=97, tie_word_embeddings=True, initializer_range=spread, **shape)
    return LlamaForCausalLM(config)


def sequences(count: int, seed: int) -> list[TokenSequence]:
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt, answer = rng.integers(2, 9), rng.integers(1, 12)
        made.append(TokenSequence(rng.integers(0, 97, prompt + answer), int(prompt), ended=True))
    return made


def groups() -> dict[str, Group]:
    """Without what frozen models give, but for log-probabilities of −3."""
    forget, retain, other = sequences(21, 1), sequences(30, 2), sequences(42, 3)
    known = {
        kind: [torch.full((s.answer_length,), -3.0) for s in some]
        for kind, some in (("forget", forget), ("other", other))
    }
    return {
        "forget": Group(
            [f"f/{i}" for i in range(21)],
            Part(forget, frozen={LOGP: known["forget"]}),
            Part(other, variants=2, frozen={LOGP: known["other"]}),
        ),
        "retain": Group([f"r/{i}" for i in range(30)], Part(retain)),
    }


def preset(name: str, **keys: Any) -> MethodConfig:
    """A method of configs/method in a size for the tiny model: batches of 8, layers and parameters it has."""
    stated = yaml.safe_load((PRESETS / f"{name}.yaml").read_text()) | {"batch": 8} | keys
    if "train" in stated:  # the last of several blocks, as a pattern of the first of two
        stated["train"] = [f"{stated['train'][0].split('.layers.')[0]}.layers.0.mlp.down_proj.weight"]
    if "warmup_steps" in stated:  # the training has fewer steps than some warm-ups
        stated["warmup_steps"] = min(1, stated["warmup_steps"])
    return MethodConfig(**stated)


def resolve_layers(terms: Sequence[Term]) -> list[Term]:
    """All terms that name a layer on the first of two: what is above it has no gradient. A refusal has two
    tokens."""
    terms = [term if term.layer is None else replace(term, layer=1) for term in terms]
    return [term if term.refusal is None else replace(term, refusal_ids=(5, 60)) for term in terms]


@cache
def everything() -> dict[str, Group]:
    """Every set with two alternative answers to each question and annotated spans."""
    rng = np.random.default_rng(7)
    made = {}
    for seed, (name, size) in enumerate({"forget": 21, "retain": 30, "full": 25}.items()):
        answers = sequences(size, 10 + seed)
        important = [rng.random(s.answer_length) < 0.5 for s in answers]
        others = Part(sequences(2 * size, 20 + seed), variants=2)
        made[name] = Group([f"{name}/{i}" for i in range(size)], Part(answers, important=important), others)
    return made


@cache
def given(name: str, kind: str, output: FrozenOutput) -> list[Tensor]:
    """What a frozen model gives for all answers of a kind: another tiny model for each."""
    alone = World(0, 1, torch.device("cpu"))
    part = everything()[name].part(kind)
    model = frozen_model(output.model)
    return frozen_outputs.compute(
        model, part.sequences, alone, max_tokens=600, collective_forward=False, output=output
    )


@cache
def frozen_model(name: str) -> LlamaForCausalLM:
    return tiny_llama({"reference": 1, "reinforced": 2}[name], 0.3)


def ready(terms: Sequence[Term]) -> tuple[dict[str, Group], Frozen]:
    """The sets that terms are on, with what they need of frozen models, as in `unlearn.training.prepare`."""
    names = dict.fromkeys("forget" if term.group == "template" else term.group for term in terms)
    found = {name: everything()[name] for name in names}
    heads = {}
    wanted = [each for term in terms for each in frozen_outputs_for(term).items()]
    for view, output in ((view, output) for view, some in wanted for output in some):
        part = found[view.group].part(view.kind)
        part = replace(part, frozen={**part.frozen, output: given(view.group, view.kind, output)})
        found[view.group] = found[view.group].with_part(view.kind, part)
        if output.what == "head":
            heads[output.model] = frozen_outputs.head_of(frozen_model(output.model))
    return found, Frozen(heads, directions={t.name: direction(t) for t in terms if needs_direction(t)})


def direction(term: Term) -> Tensor:
    """To the prompts of the retain set, as if they were refused."""
    output = frozen_output(term, STATISTICS["direction"])
    both = (given(name, "answers", output) for name in ("retain", term.group))
    return frozen_outputs.direction_of(*both)


def model_for(method: MethodConfig, spread: float = 0.02) -> LlamaForCausalLM:
    """The tiny model with the method's edits, and as much of it trainable as the method says."""
    model = tiny_llama(spread=spread)
    if method.intervention is not None:
        interventions.make(method.intervention, hidden_size=32, layers=LAYERS).attach(model)
    if method.train is not None:
        train_only(model, method.train)
    return model


def trainer_on(
    engine: Engine, method: MethodConfig, hardware: HardwareConfig, rundir: RunDir, *, every: int = 1000,
    minutes: float | None = None,
) -> Trainer:  # fmt: skip
    """At step 0, with every set and everything of frozen models that the method's terms need."""
    terms = resolve_layers(bind(method))
    data, frozen = ready(terms)
    return Trainer(
        engine,
        terms,
        TrainingData(data, frozen),
        TrainSettings(method, hardware, method.lr, progress=False),
        History(rundir, Silent(), engine.world.main),
        Checkpoints(rundir, CheckpointConfig(every_steps=every, every_minutes=minutes, keep=100)),
    )


def make_engine(
    hardware: HardwareConfig, method: MethodConfig, *, spread: float = 0.02, found: Any = None
) -> Engine:
    """With the method's model, or with the weights of a checkpoint."""
    world = start_world("cpu")
    model = model_for(method, spread)
    if found is not None:
        weights = {n[7:]: t for n, t in found[1].items() if n.startswith("weight/")}
        model.load_state_dict(weights, strict=False)
    return Engine(
        model, world, hardware, clip=clip_norm(method),
        weight_decay=method.weight_decay, betas=method.betas,
    )  # fmt: skip


def make_trainer(
    directory: Path, hardware: HardwareConfig, *, method: MethodConfig = METHOD, every: int = 1000,
    minutes: float | None = None, spread: float = 0.02,
) -> Trainer:  # fmt: skip
    """A trainer at step 0, or at its newest checkpoint if the directory has one."""
    directory.mkdir(parents=True, exist_ok=True)
    rundir = RunDir(directory)
    found = rundir.load_checkpoint()
    engine = make_engine(hardware, method, spread=spread, found=found)
    trainer = trainer_on(engine, method, hardware, rundir, every=every, minutes=minutes)
    if found is not None:
        trainer.restore(*found)
    return trainer


def train(
    directory: Path, hardware: HardwareConfig, *, stop_after: int | None = None,
    method: MethodConfig = METHOD, minutes: float | None = None, spread: float = 0.02,
) -> dict[str, Tensor]:  # fmt: skip
    """Final weights in fp32; with `stop_after`, the run is left at that step with a checkpoint."""
    trainer = make_trainer(directory, hardware, method=method, minutes=minutes, spread=spread)
    if stop_after is not None:
        while trainer.steps_made < stop_after:
            trainer.step()
        trainer.save()
    else:
        trainer.run()
    weights = {name: tensors["weight"] for name, tensors in trainer.engine.state() if tensors}
    trainer.engine.close()
    return weights


def case_of(case: Mapping[str, Any]) -> MethodConfig:
    """The method of a case: a preset's name with keys that replace its own, keys alone, or the usual one."""
    keys = case.get("keys", {})
    if "preset" in case:
        return preset(case["preset"], **keys)
    return MethodConfig(**keys) if keys else METHOD


def run(file: Path) -> None:
    for name, case in json.loads(file.read_text()).items():
        optimizers.SMALL = case.pop("small", optimizers.SMALL)
        weights = train(
            file.parent / case.pop("directory", name), HardwareConfig(**case["hardware"]),
            stop_after=case.get("stop_after"), method=case_of(case), minutes=case.get("minutes"),
            spread=case.get("spread", 0.02),
        )  # fmt: skip
        if weights:
            save_file(weights, file.parent / f"{name}.safetensors")
    stop_world()
