"""Statistics of a micro-batch on a plain model, against passes over single sequences."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.tolerance import PASS, assert_close
from tests.unlearn.training import small_training as training
from unlearn.distributed import World
from unlearn.statistics import STATISTICS, statistics_of
from unlearn.terms import Bound, Term
from unlearn.training.frozen_outputs import LOGP, FrozenOutput
from unlearn.training.microbatch import compute_statistics
from unlearn.training.step_data import Group, Part, Plan, TrainingData, Unit, frozen_output

ROWS = (4, 0, 7)
PLAN = Plan(0, [], {("forget", "answers"): 20, ("forget", "alternatives"): 20}, {})
FIXED = [torch.full((s.answer_length,), -3.0) for s in training.sequences(8, 2)]


class PlainModel:
    """A model without an engine."""

    world = World(0, 1, torch.device("cpu"))

    def __init__(self, model: Any) -> None:
        self.model = self.module = model

    def with_weights(self, values: Any) -> Any:
        return nullcontext()


def term(mask: Any = "answer", skip: int = 0) -> Term:
    return Term("forget", "forget", 1.0, Bound(torch.zeros, ()), "token", mask, skip, layer=1)


def data() -> TrainingData:
    answers = Part(training.sequences(8, 1))
    others = Part(training.sequences(8, 2), frozen={LOGP: FIXED})
    return TrainingData({"forget": Group([f"f/{i}" for i in range(8)], answers, others)})


def alone(model: Any, ids: Tensor, start: int) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, log p and states after layer 1, for the answer tokens of one sequence."""
    output = model(input_ids=ids[None], output_hidden_states=True)
    logits = output.logits[0, start - 1 : -1]
    logp = logits.log_softmax(-1).gather(-1, ids[start:, None])[:, 0]
    return logits, logp, output.hidden_states[1][0, start - 1 : -1]


def test_statistics_of_a_micro_batch_are_those_of_single_sequences() -> None:
    model = training.tiny_llama(spread=0.3)
    units = [Unit("forget", row, 0) for row in ROWS]
    own = {"logp", "logits", "hidden", "labels", "lengths", "noise"}
    needs = frozenset(own | {"alt_logp", "ref_alt_logp", "alt_lengths"})
    micro = compute_statistics(PlainModel(model), data(), PLAN, units, [(term(), needs)])
    named = micro.named["forget"]
    assert named.keys() == needs
    assert micro.size(term()) == len(named["logp"])
    for prefix, seed in (("", 1), ("alt_", 2)):
        sequences = [training.sequences(8, seed)[row] for row in ROWS]
        sizes = [s.answer_length for s in sequences]
        assert named[f"{prefix}lengths"].tolist() == sizes
        rows = [alone(model, torch.from_numpy(s.ids), s.answer_start) for s in sequences]
        for place, name in enumerate(("logits", "logp", "hidden")):
            if prefix + name in needs:
                wanted = torch.cat([row[place] for row in rows])
                assert_close(named[prefix + name], wanted, terms=PASS, scale=5)
    assert torch.equal(named["ref_alt_logp"], torch.cat([FIXED[row] for row in ROWS]))
    assert named["noise"].shape == named["labels"].shape == named["logp"].shape
    assert named["logp"].requires_grad


def test_a_term_without_units_is_left_out_and_nothing_is_computed_for_it() -> None:
    model = training.tiny_llama()
    model.register_forward_pre_hook(lambda *_: pytest.fail("a pass of the model"))
    micro = compute_statistics(
        PlainModel(model), data(), PLAN, [Unit("retain", 0, 0)], [(term(), frozenset({"logp"}))]
    )
    assert micro.named == {}


@pytest.mark.parametrize(("mask", "skip"), [("answer", 2), ("prompt", 0), ("attention", 0), ("all", 0)])
def test_positions_follow_mask_and_skip(mask: str, skip: int) -> None:
    some = training.sequences(8, 1)[ROWS[0]]
    micro = compute_statistics(
        PlainModel(training.tiny_llama()), data(), PLAN, [Unit("forget", ROWS[0], 0)],
        [(term(mask, skip), frozenset({"hidden"}))],
    )  # fmt: skip
    answer = max(0, some.answer_length - 2)
    size = {"answer": answer, "prompt": some.answer_start, "attention": len(some.ids), "all": 20}[mask]
    assert micro.named["forget"]["hidden"].shape == (size, 32)


@pytest.mark.parametrize(("mask", "skip"), [("answer", 0), ("answer", 2), ("prompt", 0), ("all", 0)])
def test_a_refusals_tokens_are_due_in_turn(mask: str, skip: int) -> None:
    the = replace(term(mask, skip), refusal="a b c", refusal_ids=(7, 8, 9))
    units = [Unit("forget", row, 0) for row in ROWS]
    micro = compute_statistics(
        PlainModel(training.tiny_llama()), data(), PLAN, units, [(the, frozenset({"refusal", "labels"}))]
    )
    wanted = []
    for row in ROWS:
        some = training.sequences(8, 1)[row]
        stop = {"answer": some.answer_length, "prompt": some.answer_start, "all": 20}[mask]
        wanted += [[7 + (place + k) % 3 for k in range(3)] for place in range(skip, stop)]
    assert micro.named["forget"]["refusal"].tolist() == wanted


def test_the_table_gives_statistics_in_its_order() -> None:
    assert [each.name for each in statistics_of(["gate", "logp", "gate"])] == ["logp", "gate"]
    assert all(name == each.name for name, each in STATISTICS.items())
    with pytest.raises(KeyError):
        statistics_of(["logpp"])


def test_states_of_frozen_models_are_of_the_terms_layer_and_mask() -> None:
    assert frozen_output(term("all"), STATISTICS["ref_logits"]) == FrozenOutput("reference", "head", "all")
    assert frozen_output(term("all"), STATISTICS["ref_hidden"]) == FrozenOutput("reference", "layer-1", "all")
    assert frozen_output(term("all"), STATISTICS["ref_alt_logp"]) == LOGP
