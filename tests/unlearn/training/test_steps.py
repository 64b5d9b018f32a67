"""The values of terms: independent of the batch, the same after an interruption; and refused settings."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from tests.tolerance import PASS, approx, assert_close
from tests.unlearn.training import small_training as training
from unlearn.config import HardwareConfig, MethodConfig
from unlearn.errors import ConfigError, UserError
from unlearn.terms import Term, bind
from unlearn.training.microbatch import compute_statistics
from unlearn.training.step_data import Unit, own_view
from unlearn.training.trainer import Trainer

WEIGHTED: dict[str, dict[str, Any]] = {
    "random": {"name": "random_k", "keep": 0.5},
    "annotated": {"name": "annotated"},
    "grouped": {"name": "simsat", "beta": 1.0, "granularity": "group", "group_size": 3},
    "whole": {"name": "satimp", "beta1": 5.0, "beta2": 0.1, "granularity": "instance", "length_norm": True},
    "all": {"name": "simsat", "beta": 1.0, "granularity": "batch", "length_norm": True},
}
KEPT = {"objective": "embedding", "mask": "attention", "layer": 1}
METHODS: dict[str, MethodConfig] = {
    name: training.preset(name)
    for name in ("ceu", "dpo", "flat-batch", "grun", "hard-sampling", "idk_ap", "jensun", "kto",
                 "lunar", "nlul", "rmu-wmdp", "tnpo", "undial", "whp-distilled")
} | {
    name: training.preset("grad_diff", forget={"objective": "ascent", "weighting": weighting}, retain=KEPT)
    for name, weighting in WEIGHTED.items()
}  # fmt: skip


@pytest.fixture
def trainer(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Trainer]:
    made = training.make_trainer(tmp_path, HardwareConfig(), method=METHODS[request.param], spread=0.2)
    yield made
    made.engine.close()


def values(trainer: Trainer, units: Sequence[Unit], pad_id: int = 0) -> dict[tuple[str, Unit], Tensor]:
    """What each term gives for each unit, in one pass over these units."""
    plan, requests = trainer.plan(0), [(term, term.loss_needs) for term in trainer.terms]
    means = trainer.steps.means(plan, trainer.terms)
    data = replace(trainer.data, pad_id=pad_id)
    with torch.no_grad():
        micro = compute_statistics(trainer.engine, data, plan, units, requests)
    found = {}
    for term in (term for term in trainer.terms if term.name in micro.named):
        view = own_view(term)
        named = micro.named[term.name] | ({"batch_mean": means[term.name]} if term.name in means else {})
        mine = [unit for unit in units if unit.group == view.group]
        lengths = micro.positions[view].lengths.tolist() if term.per == "token" else [1] * len(mine)
        for unit, some in zip(mine, term.values(named).detach().split(lengths), strict=True):
            found[term.name, unit] = some
    return found


@pytest.mark.parametrize("trainer", sorted(METHODS), indirect=True)
def test_neither_other_rows_nor_order_nor_padding_changes_a_value(trainer: Trainer) -> None:
    units = list(trainer.plan(0).units)
    units = [unit for group in trainer.data.groups for unit in units if unit.group == group][::2]
    together = values(trainer, units)
    assert {name for name, _ in together} == {term.name for term in trainer.terms}
    others = [values(trainer, units[::-1]), values(trainer, units, pad_id=96)]
    for unit in units:
        others.append(values(trainer, [unit]))
    for other in others:
        for key, found in other.items():
            assert_close(found, together[key], terms=PASS, scale=5)  # of logits
    assert {key for other in others[2:] for key in other} == together.keys()


def test_mask_all_is_the_mean_over_all_padded_positions(tmp_path: Path) -> None:
    method = training.preset("kl_min")
    trainer = training.make_trainer(tmp_path, HardwareConfig(micro_batch=2), method=method, spread=0.2)
    plan = trainer.plan(0)
    some = [trainer.data.groups["retain"].sequence(u, "answers") for u in plan.units if u.group == "retain"]
    # One batch as a tokenizer pads it: as wide as its longest sequence, nothing shifted away.
    shape = (len(some), max(len(s.ids) for s in some))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, s in enumerate(some):
        ids[row, : len(s.ids)], mask[row, : len(s.ids)] = torch.from_numpy(s.ids), 1
    assert int(mask.sum()) < 0.8 * mask.numel()
    with torch.no_grad():
        model, frozen = training.model_for(method, 0.2).double(), training.tiny_llama(1, 0.3).double()
        log_p = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
        log_q = frozen(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    wanted = (log_q.exp() * (log_q - log_p)).sum(-1)
    for split in ({"micro_batch": 8}, {"micro_batch": 2}, {"micro_tokens": 80}):
        trainer.steps.hardware = HardwareConfig(**split)
        with torch.no_grad():
            dealt = trainer.steps.in_micro_batches(plan, trainer.terms, list)
            shares = [trainer.steps.values(plan, units, trainer.terms, {}) for units in dealt]
        total = sum(float(share["retain"]) for share in shares if "retain" in share)
        assert total == approx(float(wanted.mean()), terms=PASS)
    # Over the real tokens alone it is another number: padding does count.
    assert abs(float(wanted[mask.bool()].mean()) - float(wanted.mean())) > 1e-2 * float(wanted.mean())
    trainer.engine.close()


def test_jensun_as_released_is_on_all_padded_positions(tmp_path: Path) -> None:
    forget = {"objective": "jensun", "refusal": "No idea", "target": "released", "mask": "all"}
    method = training.preset("jensun", forget=forget, retain=None)
    trainer = training.make_trainer(tmp_path, HardwareConfig(micro_batch=8), method=method, spread=0.2)
    plan, (term,) = trainer.plan(0), trainer.terms
    some = [trainer.data.groups["forget"].sequence(u, "answers") for u in plan.units]
    shape = (len(some), max(len(s.ids) for s in some))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    for row, s in enumerate(some):
        ids[row, : len(s.ids)], mask[row, : len(s.ids)] = torch.from_numpy(s.ids), 1
    with torch.no_grad():
        p = training.model_for(method, 0.2).double()(input_ids=ids, attention_mask=mask).logits.softmax(-1)
    target = torch.zeros_like(p)
    target[..., list(term.refusal_ids)] = 1
    m = (p + target) / 2
    wanted = (p * (p / m).log() + torch.where(target > 0, -m.log(), 0.0)).sum(-1) / 2
    for split in (8, 2, 1):
        trainer.steps.hardware = HardwareConfig(micro_batch=split)
        with torch.no_grad():
            dealt = trainer.steps.in_micro_batches(plan, trainer.terms, list)
            shares = [trainer.steps.values(plan, units, trainer.terms, {}) for units in dealt]
        assert sum(float(share["forget"]) for share in shares) == approx(float(wanted.mean()), terms=PASS)
    trainer.engine.close()


def test_the_noise_of_a_token_is_of_its_example_and_the_step(tmp_path: Path) -> None:
    trainer = training.make_trainer(tmp_path, HardwareConfig(), method=METHODS["random"])
    (term,) = [term for term in trainer.terms if term.name == "forget"]

    def noise(step: int, unit: Unit) -> Tensor:
        requests = [(term, frozenset({"noise"}))]
        return trainer.steps.statistics(trainer.plan(step), [unit], requests).named["forget"]["noise"]

    unit, other = trainer.plan(0).units[:2]
    assert torch.equal(noise(0, unit), noise(0, unit))
    assert not torch.equal(noise(0, unit), noise(1, unit))
    least = min(len(noise(0, unit)), len(noise(0, other)))
    assert not torch.equal(noise(0, unit)[:least], noise(0, other)[:least])
    assert float(noise(0, unit).min()) >= 0
    assert float(noise(0, unit).max()) < 1
    trainer.engine.close()


@pytest.mark.parametrize(
    ("objective", "words"),
    [
        ("lying", r"the objective of forget returned shape \(1,\), not \[\d+\]"),
        ("idle", "the objective of forget returns values without a gradient"),
    ],
)
def test_an_objective_that_gives_something_else_is_named(tmp_path: Path, objective: str, words: str) -> None:
    method = training.preset("grad_diff", forget={"objective": f"{__name__}.{objective}"})
    trainer = training.make_trainer(tmp_path, HardwareConfig(), method=method)
    with pytest.raises((RuntimeError, UserError), match=words):
        trainer.step()
    trainer.engine.close()


@pytest.mark.parametrize("trainer", ["kto"], indirect=True)
def test_a_pass_of_several_processes_has_every_group_where_groups_have_other_passes(trainer: Trainer) -> None:
    """At ZeRO 3 each call of the model is a collective, in the pass for step means, too."""
    plan, steps = trainer.plan(0), trainer.steps
    alone = [next(unit for unit in plan.units if unit.group == "forget")]
    weighted = trainer.terms[1]
    assert own_view(weighted).group == "retain"
    requests = [(trainer.terms[0], trainer.terms[0].step_statistic_needs), (weighted, weighted.loss_needs)]
    assert steps._filled(plan, alone, requests) == alone
    trainer.engine.world = replace(trainer.engine.world, size=2)
    try:
        assert {unit.group for unit in steps._filled(plan, alone, requests)} == {"forget", "retain"}
        assert steps._filled(plan, alone, requests[:1]) == alone
    finally:
        trainer.engine.world = replace(trainer.engine.world, size=1)


# -- resuming ------------------------------------------------------------------------------------------

PROBED = {"every": 2, "r2": 0.0, "loss": "retain", "smooth": 0.5}
RESUMED: dict[str, MethodConfig] = {
    "teacher": training.preset("nlul", lr=1e-3, epochs=2, teacher_rate=0.5),
    "dual": training.preset(
        "pdu", lr=1e-3, epochs=3, rule={"name": "primal_dual", "epsilon": 0.3, "warmup_epochs": 0.0}
    ),
    "rate": training.preset("ngdiff", lr=1e-3, epochs=3, warmup_epochs=0, auto_lr=PROBED),
    "edit": training.preset("grun", lr=1e-3, epochs=2),
    "factors": training.preset("rr", lr=1e-3, steps=6),
}


@pytest.mark.parametrize(
    ("name", "zero"),
    [
        ("teacher", 0),
        # At ZeRO 3: a copy of the weights, and weights that are set and set back.
        *(
            pytest.param(name, zero, marks=pytest.mark.slow)
            for name, zero in [*((n, 0) for n in RESUMED if n != "teacher"), ("teacher", 3), ("rate", 3)]
        ),
    ],
)
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path: Path, name: str, zero: Any) -> None:
    hardware = HardwareConfig(zero=zero, micro_batch=4)
    keys: dict[str, Any] = {"method": RESUMED[name], "spread": 0.2}
    whole = training.train(tmp_path / "whole", hardware, **keys)
    training.train(tmp_path / "cut", hardware, stop_after=4, **keys)
    resumed = training.train(tmp_path / "cut", hardware, **keys)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(resumed[parameter], tensor) for parameter, tensor in whole.items())
    histories = [(tmp_path / run / "history.jsonl").read_text().splitlines() for run in ("whole", "cut")]
    wanted, found = ([json.loads(line) for line in lines] for lines in histories)
    for row in found + wanted:
        del row["tokens_per_s"], row["memory_gib"]
    # As text: NaN, where a probe proposes nothing, equals itself there.
    assert json.dumps(found) == json.dumps(wanted)
    telling = {"teacher": "loss/retain", "dual": "rule/dual", "rate": "autolr/lr", "edit": "loss/forget_gate",
               "factors": "rule/retain"}  # fmt: skip
    assert len({row[telling[name]] for row in wanted if telling[name] in row}) > 1


def test_a_resumed_run_needs_the_saved_teacher(tmp_path: Path) -> None:
    """The teacher is not the model: restarting its average would change the result."""
    keys: dict[str, Any] = {"method": RESUMED["teacher"], "spread": 0.2}
    training.train(tmp_path, HardwareConfig(), stop_after=3, **keys)
    trainer = training.make_trainer(tmp_path, HardwareConfig(), **keys)
    assert trainer.teacher is not None
    both = zip(trainer.teacher.weights, trainer.engine.live_weights(), strict=True)
    assert max(float((mine - live).abs().max()) for mine, live in both) > 1e-4
    trainer.engine.close()


# -- what is refused -----------------------------------------------------------------------------------


def problems(**keys: Any) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        bind(MethodConfig(name="x", **keys))
    return caught.value.problems


def ascent(weighting: Any) -> dict[str, Any]:
    return {"objective": "ascent", "weighting": weighting}


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"forget": {"objective": "npo", "beta": 1, "mask": "all"}},
     "method.forget.mask=all: npo looks at the answer tokens themselves (logp, ref_logp)"),
    ({"retain": {"objective": "nll", "mask": "attention"}},
     "method.retain.mask=attention: nll looks at the answer tokens themselves (logp)"),
    ({"forget": {"objective": "ceu", "mask": "attention"}}, "method.forget.mask=attention: ceu looks at"),
    ({"forget": {"objective": "max_entropy", "mask": "prompts"}},
     "method.forget.mask=prompts: choose from answer, prompt, attention, all"),
    ({"forget": {"objective": "nll", "mask": "prompt"}}, "method.forget.mask=prompt: nll looks at"),
    ({"forget": {"objective": "redirect", "coefficient": 2}}, "method.forget.layer is not set: redirect"),
    ({"forget": {"objective": "rmu", "coefficient": 2, "layer": 1, "refused_prompts": "x.txt"}},
     "method.forget.refused_prompts=x.txt: rmu needs no direction; leave it out"),
    ({"forget": {"objective": "redirect", "coefficient": 2, "layer": 1, "refused_prompts": ["x"]}},
     "method.forget.refused_prompts=['x']: name a file of prompts"),
    ({"forget": {"objective": "max_entropy", "mask": "all", "skip": 1}}, "method.forget.skip=1: leaves out"),
    ({"forget": {"objective": "ascent", "skip": -1}}, "method.forget.skip=-1: give a number"),
    ({"forget": {"objective": "ascent", "skip": 0.5}}, "method.forget.skip=0.5: give a number"),
    ({"forget": {"objective": "rmu", "coefficient": 2}}, "method.forget.layer is not set: rmu looks at"),
    ({"retain": {"objective": "embedding"}}, "method.retain.layer is not set: embedding looks"),
    ({"forget": {"objective": "rmu", "coefficient": 2, "layer": "top"}}, "method.forget.layer='top': give"),
    ({"forget": {"objective": "rmu", "coefficient": 2, "layer": -1}}, "method.forget.layer=-1: give"),
    ({"forget": "jensun"}, "method.forget.refusal is not set: jensun teaches a refusal; give its text"),
    ({"forget": {"objective": "jensun", "refusal": " "}}, "method.forget.refusal=' ': give a text"),
    ({"forget": {"objective": "jensun", "refusal": 5}}, "method.forget.refusal=5: give a text"),
    ({"forget": {"objective": "nll", "refusal": "No"}},
     "method.forget.refusal='No': nll teaches no refusal; leave it out"),
    ({"forget": {"objective": "jensun", "refusal": "No", "target": "tokens"}},
     "method.forget.target='tokens': input should be 'token' or 'released'"),
    ({"forget": ascent("simsatt")}, "method.forget.weighting.name=simsatt: no such weighting (did you"),
    ({"forget": ascent({"beta": 1})}, "method.forget.weighting.name is not set (known: annotated, bottom_k"),
    ({"forget": ascent("simsat")}, "method.forget.weighting.beta is not set: weighting simsat needs it"),
    ({"forget": ascent({"name": "simsat", "beta": 1, "gamma": 2})},
     "method.forget.weighting.gamma=2: weighting simsat has no option gamma"),
    ({"forget": ascent({"name": "simsat", "beta": 1, "granularity": "tokens"})},
     "method.forget.weighting.granularity=tokens: no such granularity (did you mean token"),
    ({"forget": ascent({"name": "top_k", "keep": 0.3, "granularity": "instance"})},
     "method.forget.weighting.granularity=instance: top_k selects single tokens; leave it at token"),
    ({"forget": {"objective": "dpo", "beta": 1, "weighting": {"name": "simsat", "beta": 1}}},
     "method.forget.weighting: dpo takes no weights"),
    ({"template": {"objective": "dpo", "beta": 1}},
     "method.template.objective=dpo compares with alternative answers: set it on method.forget"),
    ({"forget": {"objective": "kto", "beta": 1, "form": "sigmoids"}},
     "method.forget.form='sigmoids': input should be 'sigmoid' or 'logsigmoid'"),
    ({"forget": {"objective": "flat", "divergence": "l2"}}, "method.forget.divergence='l2': input should be"),
    ({"forget": {"objective": "npo", "beta": "high"}}, "method.forget.beta='high': input should be a valid "),
    ({"forget": {"objective": "npo", "beta": True}}, "method.forget.beta=True: input should be a valid n"),
    ({"forget": {"objective": "npo"}}, "method.forget.beta is not set: objective npo needs it"),
    ({"forget": {"objective": "npoo", "beta": 1}}, "method.forget.objective=npoo: no such objective ("),
    ({"forget": {"objective": "ascent", "beta": 1}}, "method.forget.beta=1: objective ascent has no option"),
    ({"forget": {"beta": 1}}, "method.forget.objective is not set (known: answer_preservation"),
    ({"forget": {"objective": f"{__name__}.asking"}},
     f"method.forget: objective {__name__}.asking asks for 'logpp', which nothing provides (did"),
    ({"forget": {"objective": f"{__name__}.silent"}},
     f"method.forget.objective={__name__}.silent: annotate what it returns"),
    ({"forget": {"objective": "package.missing.f"}}, "method.forget.objective=package.missing.f: cannot"),
    ({"retain": "nll", "further": [{"slot": "retain", "objective": "nll"}] * 2},
     "method.further: two terms with one objective on the same data; add up their weights"),
    ({"retain": "nll", "further": [{"slot": "forget", "objective": "gate"}]},
     "method.further.0.label is not set: objective gate needs it"),
    ({"forget": "ascent", "rule": {"name": "primal_dual", "epsilon": 1}},
     "method.retain has no term: rule primal_dual needs one"),
]  # fmt: skip


@pytest.mark.parametrize(("keys", "message"), REFUSED, ids=[m[:60] for _, m in REFUSED])
def test_refused_with_place_and_fix(keys: dict[str, Any], message: str) -> None:
    found = problems(**keys)
    assert len(found) == 1, found
    assert found[0].startswith(message)


def test_all_problems_are_reported_at_once() -> None:
    found = problems(
        forget={"objective": "npo"}, retain={"objective": "nl"}, rule={"name": "primal_dual"},
        further=[{"slot": "forget", "objective": "gate", "label": 1, "labels": 0}],
    )  # fmt: skip
    assert [problem.partition(" ")[0] for problem in found] == [
        "method.forget.beta", "method.retain.objective=nl:", "method.further.0.labels=0:",
        "method.rule.epsilon",
    ]  # fmt: skip


def names(**keys: Any) -> list[tuple[str, str, float]]:
    return [(t.name, t.group, t.weight) for t in bind(MethodConfig(name="x", **keys))]


def test_shorthands() -> None:
    (forget, retain) = bind(MethodConfig(name="x", forget="ascent", retain="kl"))
    assert (retain.name, retain.objective.function.__name__, retain.mask) == ("retain", "kl", "answer")
    assert forget.weighting is None
    assert names(forget="ascent", retain="none") == [("forget", "forget", 1.0)]
    assert names(forget="none", retain="none") == []


def test_further_terms_are_named_after_data_and_objective() -> None:
    further = [{"slot": "retain", "objective": "gate", "label": 0, "weight": 10.0}]
    assert names(forget="ascent", retain="nll", retain_weight=2.0, further=further) == [
        ("forget", "forget", 1.0), ("retain", "retain", 2.0), ("retain_gate", "retain", 10.0),
    ]  # fmt: skip


def test_what_a_term_needs() -> None:
    def the(**keys: Any) -> Term:
        return bind(MethodConfig(name="x", **keys))[0]

    weighted = the(forget=ascent({"name": "tnpo", "beta": 4.0, "granularity": "batch"}))
    assert weighted.needs == weighted.loss_needs == {"logp", "ref_logp", "lengths"}
    assert weighted.needs_step_statistic
    kto = the(forget={"objective": "kto", "beta": 0.1})
    assert kto.loss_needs == {"logp", "ref_logp", "lengths"}
    assert kto.step_statistic_needs == {"alt_logp", "ref_alt_logp", "alt_lengths"}
    assert kto.needs == kto.loss_needs | kto.step_statistic_needs
    assert not the(forget="ascent").needs_step_statistic
    assert (the(forget="ascent").per, kto.per) == ("token", "example")


def asking(logpp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return logpp


def silent(logp: Tensor) -> Tensor:
    return logp


def idle(logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return logp.detach()


def lying(logp: Float[Tensor, " N"]) -> Float[Tensor, " N"]:
    return logp.sum()[None]
