"""Every preset of configs/method on a tiny model: the same for every split, without superfluous passes."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests.rows import rows_in_pass
from tests.tolerance import PASS, approx, assert_trained_alike, relative
from tests.unlearn.training import small_training as training
from tests.unlearn.training.test_trainer import in_processes
from unlearn.config import HardwareConfig, MethodConfig
from unlearn.passes.head import logits_are_plain
from unlearn.passes.unpadded import runs_unpadded
from unlearn.run_dir import RunDir
from unlearn.terms import OBJECTIVES
from unlearn.training.engine import Engine
from unlearn.training.trainer import Trainer

NAMES = sorted(file.stem for file in training.PRESETS.glob("*.yaml"))
METHODS = {name: method for name in NAMES if (method := training.preset(name)).terms}
# Of a norm: errors of single numbers average out in it.
RELATIVE = relative(terms=PASS)
SPLITS: list[dict[str, Any]] = [{"micro_batch": 4}, {"micro_batch": 1}, {"micro_tokens": 90}]


def pattern(method: MethodConfig) -> str:
    """What a method computes, whatever its numbers: objectives, weightings, masks, rule, edit."""
    stated = [*method.terms.items(), *((f.slot, f.model_dump()) for f in method.further)]
    text = {k: v for _, term in stated for k, v in term.items() if isinstance(v, str | dict)}
    slots = [(slot, term["objective"]) for slot, term in stated]
    weighting = text.get("weighting")
    shape = [weighting["name"], weighting.get("granularity")] if isinstance(weighting, dict) else weighting
    return str(
        [slots, shape, text.get("mask"), method.rule.name, bool(method.intervention), bool(method.train)]
    )


def some_slow() -> list[Any]:
    """All presets; those that compute what an earlier one does, with other numbers, are slow."""
    seen: set[str] = set()
    found = []
    by_engine = sorted(METHODS.items(), key=lambda pair: (str(pair[1].intervention), str(pair[1].train)))
    for name, method in by_engine:
        found.append(pytest.param(name, marks=[pytest.mark.slow] if pattern(method) in seen else []))
        seen.add(pattern(method))
    return found


class Engines:
    """One engine for all methods that train the whole model: nothing here steps, so it stays as it is."""

    def __init__(self, directory: Path) -> None:
        self.directory, self.key = directory, ""
        self.open: Engine | None = None

    def trainer(self, method: MethodConfig) -> Trainer:
        key = str((method.intervention, method.train))
        if self.open is None or key != self.key:
            self.close()
            self.key = key
            self.open = training.make_engine(HardwareConfig(), method, spread=0.2)
            self.open.model.train()
        return training.trainer_on(self.open, method, HardwareConfig(), RunDir(self.directory))

    def close(self) -> None:
        if self.open is not None:
            self.open.close()
        self.open = None


@pytest.fixture(scope="module")
def engines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engines]:
    made = Engines(tmp_path_factory.mktemp("run"))
    yield made
    made.close()


@pytest.fixture
def trainer(request: pytest.FixtureRequest, engines: Engines) -> Trainer:
    method = METHODS[request.param]
    if method.smooth.name in ("penalty", "curvature"):  # whose weight / mu multiplies rounding errors
        smooth = method.smooth.model_copy(update={"weight": method.smooth.mu})
        method = method.model_copy(update={"smooth": smooth})
    made = engines.trainer(method)
    if made.teacher is not None:  # it starts as the model itself, where nothing draws the two together
        for weight in made.teacher.weights:
            weight.mul_(1.3)
    return made


def measure(trainer: Trainer, **hardware: Any) -> tuple[list[float], list[Tensor]]:
    """Each term's loss at step 0, and the gradient of each backward pass as one vector; no step is made."""
    trainer.steps.hardware = HardwareConfig(**hardware)
    plan, groups = trainer.plan(0), trainer.data.groups
    assert [len([u for u in plan.units if u.group == g]) for g in groups] == [8] * len(groups)
    losses, separate = trainer.losses_and_gradients(plan)
    gradients = separate or [trainer.engine.take_gradients()]
    return losses.tolist(), [torch.cat([g.flatten() for g in each]).double() for each in gradients]


@pytest.mark.parametrize("trainer", some_slow(), indirect=True)
def test_losses_and_gradients_are_the_same_however_a_step_is_cut(trainer: Trainer) -> None:
    losses, gradients = measure(trainer, micro_batch=8)
    assert all(loss != 0 for loss in losses)
    assert all(float(gradient.norm()) > 0 for gradient in gradients)
    for split in SPLITS:
        other_losses, other_gradients = measure(trainer, **split)
        assert other_losses == approx(losses, terms=PASS, scale=0.1), split
        for found, wanted in zip(other_gradients, gradients, strict=True):
            assert float((found - wanted).norm()) <= RELATIVE * float(wanted.norm()), split


# -- nothing is computed that a method does not name ---------------------------------------------------


@dataclass
class Counted:
    """The passes of a model, each with: gradients?, rows, positions of the head, hidden states?"""

    passes: list[tuple[bool, int, int, bool]] = field(default_factory=list)


@contextmanager
def counted(model: Any) -> Iterator[Counted]:
    runs_unpadded(model)  # its trial is not counted
    found, head = Counted(), model.get_output_embeddings()
    started: list[tuple[bool, int, bool]] = []

    def begin(_: Any, args: Any, kwargs: dict[str, Any]) -> None:
        rows = rows_in_pass() or kwargs["input_ids"].shape[0]
        started.append((torch.is_grad_enabled(), rows, bool(kwargs.get("output_hidden_states"))))

    def headed(_: Any, args: tuple[Tensor], logits: Tensor) -> None:
        gradients, rows, hidden = started.pop()
        found.passes.append((gradients, rows, args[0].shape[:-1].numel(), hidden))

    handles = [
        model.register_forward_pre_hook(begin, with_kwargs=True), head.register_forward_hook(headed)
    ]  # fmt: skip
    try:
        yield found
    finally:
        assert not started
        for handle in handles:
            handle.remove()


def needs_of(term: dict[str, Any]) -> tuple[set[str], set[str]]:
    """By signature: what a term is given as it is trained, and what before that for a mean over the step."""
    function = OBJECTIVES.find(term["objective"], "objective")
    names = {p.name for p in inspect.signature(function).parameters.values() if p.kind is not p.KEYWORD_ONLY}
    before: set[str] = set()
    if "batch_mean" in names:
        mean = inspect.getmodule(function).batch_mean  # type: ignore[union-attr]
        before = {p.name for p in inspect.signature(mean).parameters.values() if p.kind is not p.KEYWORD_ONLY}
    weighting = term.get("weighting")
    if isinstance(weighting, dict) and weighting.get("granularity") == "batch":
        before = {"logp", "lengths"}
    return names, before


def expected(trainer: Trainer) -> tuple[list[tuple[bool, int, int, bool]], list[tuple[bool, int, int, bool]]]:
    """The passes with gradients, and those without, of a step in one piece: by the method's own words."""
    method, step = trainer.settings.method, trainer.plan(0)
    rows: dict[str, set[Any]] = {"main": set(), "teacher": set(), "mean": set()}
    places: dict[str, set[Any]] = {"main": set(), "teacher": set(), "mean": set()}
    hidden = False
    stated = [*method.terms.items(), *((f.slot, f.model_dump()) for f in method.further)]
    for slot, term in stated:
        own = ("forget", "alternatives") if slot == "template" else (slot, "answers")
        other = ("forget" if slot == "template" else slot, "alternatives")
        where = (*own, term.get("mask", "answer"), term.get("skip", 0))
        now, before = needs_of(term)
        hidden |= "hidden" in now
        for kind, names in (("main", now), ("mean", before)):
            if any(name in names for name in ("logp", "logits")):
                places[kind].add(where)
            if "alt_logp" in names:
                rows[kind].add(other)
                places[kind].add((*other, "answer", 0))
            if any("alt_" not in name for name in names - {"batch_mean", "weights"}):
                rows[kind].add(own)
        if "teacher_logits" in now:
            rows["teacher"].add(own)
            places["teacher"].add(where)

    def positions(where: tuple[str, str, str, int]) -> int:
        group, kind, mask, skip = where
        some = [trainer.data.groups[group].sequence(u, kind) for u in step.units if u.group == group]
        ids = [len(s.ids) for s in some]
        answers = [max(0, s.answer_length - skip) for s in some]
        prompts = [s.answer_start for s in some]
        sizes = {"answer": answers, "prompt": prompts, "attention": ids, "all": [max(ids)] * len(ids)}
        return sum(sizes[mask])

    def some(kind: str) -> list[tuple[bool, int, int, bool]]:
        """Answers and alternative answers have separate passes."""
        found = []
        for answers in ("answers", "alternatives"):
            parts = [part for part in rows[kind] if part[1] == answers]
            seen = sum(positions(place) for place in places[kind] if place[1] == answers)
            if parts:
                found.append((kind == "main", 8 * len(parts), seen, hidden and kind == "main"))
        return found

    return some("main"), [*some("mean"), *some("teacher")]


@pytest.mark.slow  # (some by hand below)
@pytest.mark.parametrize("trainer", some_slow(), indirect=True)
def test_nothing_is_computed_that_a_method_does_not_name(trainer: Trainer) -> None:
    if trainer.rule.separate:  # one pass for each term, over its own data: the sum of them is looked at
        trainer.rule.separate = False
    trainer.smoothness = None  # several passes of the forget terms
    logits_are_plain(trainer.engine.module)  # a call of its own, once for each model
    with counted(trainer.engine.module) as found:
        measure(trainer, micro_batch=8)
    main, without = expected(trainer)
    assert sorted(each for each in found.passes if each[0]) == sorted(main)
    assert sorted(each for each in found.passes if not each[0]) == sorted(without)


@pytest.mark.parametrize(
    ("trainer", "wanted"),
    [
        # gradients?, rows, positions of the head, hidden states?
        ("rmu", [(True, 16, 0, True)]),
        ("npo", [(True, 16, "answers", False)]),
        ("kto", [(False, 8, "alternatives", False), (True, 16, "answers", False)]),
        ("nlul", [(False, 8, "retain", False), (True, 16, "answers", False)]),
        ("flat", [(True, 8, "forget answers", False), (True, 8, "alternatives", False)]),
    ],
    indirect=["trainer"],
)
def test_passes_by_hand(trainer: Trainer, wanted: list[tuple[bool, int, Any, bool]]) -> None:
    plan = trainer.plan(0)

    def answers(group: str, kind: str) -> int:
        units = [u for u in plan.units if u.group == group]
        return sum(trainer.data.groups[group].sequence(u, kind).answer_length for u in units)

    retain = answers("retain", "answers") if "retain" in trainer.data.groups else 0
    sizes = {
        0: 0, "alternatives": answers("forget", "alternatives"), "retain": retain,
        "answers": answers("forget", "answers") + retain,
        "forget answers": answers("forget", "answers"),
    }  # fmt: skip
    logits_are_plain(trainer.engine.module)  # a call of its own, once for each model
    with counted(trainer.engine.module) as found:
        measure(trainer, micro_batch=8)
    assert found.passes == [(g, rows, sizes[size], hidden) for g, rows, size, hidden in wanted]


# -- several processes ---------------------------------------------------------------------------------

BATCHWISE = {"weighting": {"name": "simsat", "beta": 1.0, "granularity": "batch", "length_norm": True}}
CHOSEN: dict[str, dict[str, Any]] = {
    "kto": {"preset": "kto"},
    "nlul": {"preset": "nlul", "keys": {"teacher_rate": 0.5}},
    "ngdiff": {"preset": "ngdiff"},
    "rmu": {"preset": "rmu"},
    # The passes of its two terms are unlike: only one of them goes through all layers.
    "uneven": {"preset": "rmu", "keys": {"retain": {"objective": "nll"}}},
    "batch": {"preset": "wga", "keys": {"forget": {"objective": "ascent", **BATCHWISE}}},
    "grun": {"preset": "grun"},
    "rr": {"preset": "rr"},
    "lunar": {"preset": "lunar"},
}


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path: Path, engines: Engines) -> None:
    engines.close()  # one engine at a time in a process
    for case in CHOSEN.values():
        case["keys"] = {"steps": 3, "lr": 2e-3, "warmup_epochs": 0, **case.get("keys", {})}
    splits = {3: 1}
    cases = {
        f"{name}-{zero}": {
            **case, "spread": 0.2, "hardware": {"processes": 2, "zero": zero, "micro_batch": micro}
        }
        for name, case in CHOSEN.items()
        for zero, micro in splits.items()
    }  # fmt: skip
    in_processes(tmp_path, cases, 2)
    for name, case in CHOSEN.items():
        method = training.case_of(case)
        start = {n: p.detach() for n, p in training.model_for(method, 0.2).named_parameters()}
        alone = training.train(tmp_path / name, HardwareConfig(), method=method, spread=0.2)
        assert max(float((alone[n] - start[n]).abs().max()) for n in alone) > 1e-3
        for zero in splits:
            found = load_file(tmp_path / f"{name}-{zero}.safetensors")
            assert_trained_alike(found, alone, lr=2e-3, steps=3, named=f"{name} at ZeRO {zero}")


def test_presets_without_terms_are_known() -> None:
    assert sorted(set(NAMES) - set(METHODS)) == ["dsg", "none", "whp"]
