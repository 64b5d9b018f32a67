"""The G-effect probe against float64 autograd, and that it changes nothing of a run."""

from __future__ import annotations

import copy
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from tests.tolerance import PASS, approx, assert_close
from tests.unlearn.probes import small_probes as watching
from tests.unlearn.training import small_training as training
from tests.worlds import together
from unlearn.config import HardwareConfig, MethodConfig
from unlearn.probes import saved_models
from unlearn.probes._model_folders import steps_of
from unlearn.probes.geffect.example_effects import Points, implicit_weights
from unlearn.probes.geffect.measurement import _alike
from unlearn.probes.geffect.parameter_groups import parameter_groups
from unlearn.probes.geffect.set_gradients import sampled
from unlearn.terms import bind
from unlearn.training.frozen_outputs import LOGP
from unlearn.training.observers import Observers
from unlearn.training.step_data import own_view


def keys(**given: Any) -> MethodConfig:
    return MethodConfig.model_validate({"name": "x", "lr": 1e-3, "batch": 8, "warmup_epochs": 0, **given})


GA = keys(forget={"objective": "ascent"})
GD = keys(forget={"objective": "ascent"}, retain={"objective": "nll"})
NPO = keys(forget={"objective": "npo", "beta": 0.5}, retain={"objective": "nll"}, retain_weight=0.5)
RMU = keys(forget={"objective": "rmu", "coefficient": 2.0, "direction": "uniform", "layer": 1})


def in_double(spread: float = 0.3) -> Any:
    return training.tiny_llama(spread=spread).double().eval()


def token_logps(model: nn.Module, name: str) -> list[Tensor]:
    """Log-probabilities of each example's answer tokens, one example at a time."""
    found = []
    for s in training.everything()[name].part("answers").sequences:
        logits = model(input_ids=torch.from_numpy(s.ids)[None]).logits[0, :-1]
        logp = logits.log_softmax(-1).gather(-1, torch.from_numpy(s.ids)[1:, None])[:, 0]
        found.append(logp[s.answer_start - 1 :])
    return found


def gradient(model: nn.Module, value: Tensor) -> dict[str, Tensor]:
    named = dict(model.named_parameters())
    grads = torch.autograd.grad(value, list(named.values()), allow_unused=True, retain_graph=True)
    return {
        n: torch.zeros_like(p) if g is None else g for (n, p), g in zip(named.items(), grads, strict=True)
    }


def inner(a: dict[str, Tensor], b: dict[str, Tensor]) -> float:
    return float(sum((a[n] * b[n]).sum() for n in a))


def product(first: dict[str, Tensor], second: dict[str, Tensor], over: float = 1) -> Any:
    """What equals an inner product of two gradients: their parts cancel, so the lengths are the scale."""
    lengths = math.sqrt(inner(first, first) * inner(second, second))
    return approx(inner(first, second) / over, terms=PASS, scale=lengths / over)


def assert_same_row(found: dict[str, float], wanted: dict[str, float]) -> None:
    """Layers and kinds by the largest of their table; what is left of risks that cancel, by these."""
    assert found.keys() == wanted.keys()
    largest: dict[str, float] = {}
    for key, value in wanted.items():
        table = key.split("/")[1]
        largest[table] = max(largest.get(table, 0.0), 0.0 if math.isnan(value) else abs(value))
    risks = max(wanted["geffect/risk_forget"], wanted["geffect/risk_retain"])
    moved = abs(wanted["geffect/check/forget_predicted"])
    for key in found.keys() - {"geffect/seconds"}:
        scale = largest[key.split("/")[1]]
        if key.startswith("geffect/check/"):
            scale = risks / moved if key.endswith(("explained", "correlation")) else risks
        assert found[key] == approx(wanted[key], terms=PASS, scale=scale), key


def risk(model: nn.Module, name: str) -> Tensor:
    return -torch.cat(token_logps(model, name)).mean()


def npo_by_hand(model: nn.Module) -> Tensor:
    """(2/β) mean_b log(1 + (π/π°)^β), eq. 3 of arXiv 2502.19301, and half the retain risk."""
    kept = training.given("forget", "answers", LOGP)
    ratios = torch.stack(
        [a.sum() - b.double().sum() for a, b in zip(token_logps(model, "forget"), kept, strict=True)]
    )
    return -(2 / 0.5) * logsigmoid(-0.5 * ratios).mean() + 0.5 * risk(model, "retain")


@pytest.mark.parametrize(
    ("method", "by_hand"),
    [(GA, lambda m: -risk(m, "forget")), (NPO, npo_by_hand)],
    ids=["GA", "NPO with GD"],
)
def test_effects_are_inner_products_of_whole_gradients(tmp_path, method, by_hand):
    model = in_double()
    objective = gradient(model, by_hand(model))
    forget, retain = (gradient(model, risk(model, name)) for name in ("forget", "retain"))
    seen = watching.look(tmp_path, method)
    assert seen["geffect/unlearn"] == product(forget, objective)
    assert seen["geffect/retain"] == product(retain, objective)
    length = math.sqrt(inner(objective, objective))
    assert seen["geffect/gradient_norm"] == approx(length, terms=PASS)
    cosine = inner(forget, objective) / length / math.sqrt(inner(forget, forget))
    assert seen["geffect/unlearn_cosine"] == approx(cosine, terms=PASS, scale=1)
    conflict = inner(forget, retain) / math.sqrt(inner(forget, forget) * inner(retain, retain))
    assert seen["geffect/conflict"] == approx(conflict, terms=PASS, scale=1)
    rows = pq.read_table(tmp_path / "geffect/step-000000/layers.parquet").to_pylist()
    for row in (row for row in rows if row["term"] == "objective"):
        one = {row["parameter"]}
        wanted = product({n: forget[n] for n in one}, {n: objective[n] for n in one})
        assert row["unlearn"] == wanted, row["parameter"]


def test_samples_of_objective_and_risk_have_no_example_in_common():
    groups = training.everything()
    some = sampled(groups, 10, 0)
    for name in ("forget", "retain"):
        assert len({*some.objective[name], *some.risk[name]}) == 20
        assert [sorted(rows[name]) for rows in some] == [rows[name] for rows in some]
    assert some == sampled(groups, 10, 0)
    assert some != sampled(groups, 10, 1)


@pytest.mark.parametrize("count", [11, 21, 100, None])
def test_a_set_too_small_for_two_samples_is_both_as_a_whole(count):
    (objective, risk) = (rows["forget"] for rows in sampled(training.everything(), count, 0))
    assert objective == risk == list(range(21))


def test_effects_over_samples_are_inner_products_of_the_samples_gradients(tmp_path):
    """GA with GD: with one sample for both, e_r would have the squared length of its own gradient."""
    seen = watching.look(tmp_path, GD, examples=7, points=7)
    samples = sampled(training.everything(), 7, 0)
    model = in_double()
    logps = {name: token_logps(model, name) for name in ("forget", "retain")}

    def mean(name: str, rows: dict[str, list[int]]) -> Tensor:
        return -torch.cat([logps[name][row] for row in rows[name]]).mean()

    value = -mean("forget", samples.objective) + mean("retain", samples.objective)
    objective = gradient(model, value)
    risks = {name: gradient(model, mean(name, samples.risk)) for name in logps}
    assert seen["geffect/unlearn"] == product(risks["forget"], objective)
    assert seen["geffect/retain"] == product(risks["retain"], objective)
    assert seen["geffect/risk_retain"] == approx(float(mean("retain", samples.risk).detach()), terms=PASS)
    conflict = inner(*risks.values()) / math.sqrt(math.prod(inner(g, g) for g in risks.values()))
    assert seen["geffect/conflict"] == approx(conflict, terms=PASS, scale=1)
    # Single examples are those of the risk: by their tokens they add up to it.
    rows = pq.read_table(tmp_path / "geffect/step-000000/examples.parquet").to_pylist()
    for name, way in (("forget", "unlearn"), ("retain", "retain")):
        own = {row["id"]: row["objective"] for row in rows if row["set"] == name}
        ids = [training.everything()[name].ids[row] for row in samples.risk[name]]
        tokens = np.array([len(logps[name][row]) for row in samples.risk[name]])
        whole = float(tokens @ [own[key] for key in ids]) / tokens.sum()
        lengths = math.sqrt(inner(risks[name], risks[name]) * inner(objective, objective))
        assert whole == approx(seen[f"geffect/{way}"], terms=PASS, scale=lengths)


@pytest.mark.parametrize("method", [
        NPO, training.preset("ngdiff"),
        *(pytest.param(m, marks=pytest.mark.slow) for m in (RMU, training.preset("kl_min"))),
    ], ids=["NPO", "NGDiff", "RMU", "KL"])  # fmt: skip
def test_parts_add_up_to_the_whole(tmp_path, method):
    seen = watching.look(tmp_path, method)
    for way in ("unlearn", "retain"):
        total = seen[f"geffect/{way}"]
        for part in (f"geffect/{way}/", f"geffect/{way}_by_kind/"):
            assert sum(v for k, v in seen.items() if k.startswith(part)) == pytest.approx(total, rel=1e-9)
        terms = [v for k, v in seen.items() if k.startswith("geffect/terms/") and k.endswith(f"/{way}")]
        assert sum(terms) == approx(total, terms=PASS, scale=max(map(abs, terms)))


def test_the_update_of_a_gradient_rule_is_the_combined_one(tmp_path):
    """NGDiff: g = ∇R_r/‖∇R_r‖ − ∇R_f/‖∇R_f‖, so that e_r = ‖∇R_r‖ − cos·‖∇R_r‖."""
    seen = watching.look(tmp_path, training.preset("ngdiff"))
    model = in_double()
    forget, retain = (gradient(model, risk(model, name)) for name in ("forget", "retain"))
    f, r = (math.sqrt(inner(g, g)) for g in (forget, retain))
    assert seen["geffect/retain"] == approx(r - inner(forget, retain) / f, terms=PASS, scale=r)
    assert seen["geffect/unlearn"] == approx(inner(forget, retain) / r - f, terms=PASS, scale=f)


def test_no_objective_no_effect(tmp_path):
    seen = watching.look(tmp_path, keys(forget={"objective": "ascent"}, forget_weight=0.0))
    assert seen["geffect/unlearn"] == seen["geffect/retain"] == seen["geffect/gradient_norm"] == 0.0
    assert math.isnan(seen["geffect/unlearn_cosine"])
    assert not any(key.startswith("geffect/check") for key in seen)


@pytest.mark.slow
def test_the_effect_is_linear_in_the_objective(tmp_path):
    once = watching.look(tmp_path / "1", GA)
    twice = watching.look(tmp_path / "2", keys(forget={"objective": "ascent"}, forget_weight=2.0))
    assert twice["geffect/unlearn"] == approx(2 * once["geffect/unlearn"], terms=PASS)
    assert twice["geffect/retain_cosine"] == approx(once["geffect/retain_cosine"], terms=PASS, scale=1)


@pytest.mark.slow
def test_batches_do_not_show(tmp_path):
    whole = watching.look(tmp_path / "1", NPO, {"micro_tokens": 4096})
    small = watching.look(tmp_path / "2", NPO, {"micro_tokens": 40})
    assert_same_row(small, whole)


@pytest.mark.slow
def test_the_running_mean_over_mini_batches_by_hand(tmp_path):
    """0.6 of the old, 0.4 of the new: 21 forget examples in batches of 8 make three."""
    model = in_double()
    logps, other = token_logps(model, "forget"), token_logps(model, "retain")
    seen = watching.look(tmp_path, GA, mode="running")

    def mean(parts: list[Tensor]) -> dict[str, Tensor]:
        total: dict[str, Tensor] = {}
        for start in range(0, len(parts), 8):
            g = gradient(model, -torch.cat(parts[start : start + 8]).mean())
            total = {n: 0.6 * total[n] + 0.4 * g[n] for n in g} if total else g
        return total

    forget, retain = mean(logps), mean(other)
    assert -seen["geffect/unlearn"] == product(forget, forget)
    assert -seen["geffect/retain"] == product(retain, forget)


# -- examples and tokens -------------------------------------------------------------------------------


@pytest.mark.slow
def test_examples_and_tokens_against_one_backward_each(tmp_path):
    watching.look(tmp_path, NPO, token_layers=True)
    model = in_double()
    objective = gradient(model, npo_by_hand(model))
    where = parameter_groups(model, (1 / 3, 2 / 3))
    tables = {
        name: pq.read_table(tmp_path / f"geffect/step-000000/{name}.parquet").to_pylist()
        for name in ("examples", "tokens")
    }
    assert len(tables["examples"]) == 8
    for name in ("forget", "retain"):
        ids, logps = training.everything()[name].ids, token_logps(model, name)
        for row in (row for row in tables["examples"] if row["set"] == name):
            logp = logps[ids.index(row["id"])]
            own = gradient(model, -logp.mean())
            assert row["risk"] == approx(float(-logp.mean()), terms=PASS)
            assert row["objective"] == product(own, objective)
            shallow = {n for n in own if where[n].group == "shallow"}
            below = {n: objective[n] for n in shallow}
            assert row["objective/shallow"] == product({n: own[n] for n in shallow}, below)
            tokens = [t for t in tables["tokens"] if t["id"] == row["id"]]
            assert [t["position"] for t in tokens] == list(range(len(logp)))
            last = gradient(model, -logp[-1])
            assert tokens[-1]["objective"] == product(last, objective)
            assert tokens[-1]["objective/shallow"] == product({n: last[n] for n in shallow}, below)


def test_which_example_hurts_which(tmp_path):
    watching.look(tmp_path, GA)
    model = in_double()
    forget, retain = token_logps(model, "forget"), token_logps(model, "retain")
    rows = pq.read_table(tmp_path / "geffect/step-000000/grid.parquet").to_pylist()
    assert len(rows) == 4
    for row in rows:
        one = gradient(model, forget[training.everything()["forget"].ids.index(row["forget_id"])].mean())
        other = gradient(model, -retain[training.everything()["retain"].ids.index(row["retain_id"])].mean())
        assert row["effect"] == product(other, one)
        assert row["per_length"] == product(other, one, math.sqrt(inner(one, one)))


def npo_weight(p: np.ndarray, q: np.ndarray, beta: float) -> np.ndarray:
    now, before = np.exp(beta * p.sum()), np.exp(beta * q.sum())
    return np.full(len(p), 2 * now / (now + before))


@pytest.mark.parametrize(
    ("term", "weight"),
    [
        ({"objective": "ascent"}, lambda p, q: np.ones(len(p))),
        ({"objective": "ascent", "weighting": {"name": "simsat", "beta": 2.0}}, lambda p, q: np.exp(2 * p)),
        ({"objective": "npo", "beta": 0.5}, lambda p, q: npo_weight(p, q, 0.5)),
        (
            {"objective": "ascent", "weighting": {"name": "tnpo", "beta": 1.0}},
            lambda p, q: 2 * np.exp(p) / (np.exp(p) + np.exp(q) + 1e-5),
        ),
    ],
    ids=["GA", "WGA", "NPO", "TNPO"],
)
def test_implicit_weights_are_those_of_the_paper(tmp_path, term, weight):
    watching.look(tmp_path, keys(forget=term))
    kept = training.given("forget", "answers", LOGP)
    ids = training.everything()["forget"].ids
    rows = pq.read_table(tmp_path / "geffect/step-000000/tokens.parquet").to_pylist()
    own = {row["id"] for row in rows if row["set"] == "forget"}
    assert len(own) == 4
    for key in own:
        tokens = [row for row in rows if row["id"] == key]
        logp = np.array([t["logp"] for t in tokens])
        wanted = weight(logp, kept[ids.index(key)].double().numpy())
        assert_close([t["weight"] for t in tokens], wanted, dtype=torch.float32, terms=PASS)
    assert all(row["weight"] is None for row in rows if row["set"] == "retain")


# -- the check -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_small_step_does_what_is_predicted_and_a_large_one_does_not(tmp_path):
    small = watching.look(tmp_path / "1", GA, step=0.05)
    assert small["geffect/check/explained"] > 0.99
    assert small["geffect/trusted"] == 1.0
    large = watching.look(tmp_path / "2", GA, step=50.0)
    assert large["geffect/check/explained"] < 0.9
    assert large["geffect/trusted"] == 0.0


@pytest.mark.slow
def test_the_second_order_is_the_hessian_along_the_step(tmp_path):
    seen = watching.look(tmp_path, GA, second_order=True, points=21, step=0.02)
    model = in_double()
    model.config._attn_implementation = "eager"  # which can be differentiated twice
    named = list(model.parameters())
    eta, first = seen["geffect/check/step"], gradient(model, -risk(model, "forget"))
    direction = [first[n] for n, _ in model.named_parameters()]

    def along(value: Tensor) -> tuple[float, float]:
        grads = torch.autograd.grad(value, named, create_graph=True)
        slope = torch.stack([(g * d).sum() for g, d in zip(grads, direction, strict=True)]).sum()
        curved = torch.autograd.grad(slope, named)
        return float(slope), float(sum((g * d).sum() for g, d in zip(curved, direction, strict=True)))

    each = torch.stack([-logp.mean() for logp in token_logps(model, "forget")]).mean()
    slope, curvature = along(each)
    wanted = -eta * slope + 0.5 * eta**2 * curvature
    assert seen["geffect/check/forget_predicted"] == approx(-eta * slope, terms=PASS)
    # The central difference leaves out the third order over a tenth of the step: some thousandths of it.
    assert seen["geffect/check/forget_second_order"] == pytest.approx(wanted, rel=5e-3)
    # What is left over falls with the third power of the step instead of the second.
    left = [1 - seen[f"geffect/check/{order}explained"] for order in ("", "second_order_")]
    assert left[1] < left[0] / 100


# -- nothing changes -----------------------------------------------------------------------------------


def same_history(a: Path, b: Path) -> None:
    skipped = {"tokens_per_s", "memory_gib"}
    rows = [
        [
            {k: v for k, v in row.items() if k not in skipped}
            for row in map(json.loads, (folder / "history.jsonl").read_text().splitlines())
            if "loss" in row
        ]
        for folder in (a, b)
    ]
    assert rows[0] == rows[1]


@pytest.mark.parametrize(
    "preset", ["npo", *(pytest.param(n, marks=pytest.mark.slow) for n in ("rmu", "ngdiff", "gru"))]
)
def test_a_watched_run_is_bit_for_bit_the_same(tmp_path, preset):
    method = training.preset(preset, epochs=1)
    plain = training.train(tmp_path / "plain", HardwareConfig(), method=method, spread=0.3)
    seen = watching.watched(tmp_path / "seen", {}, method)
    assert plain.keys() == seen.keys()
    assert all(torch.equal(plain[name], seen[name]) for name in plain)
    same_history(tmp_path / "plain", tmp_path / "seen")
    rows = [json.loads(line) for line in (tmp_path / "seen/history.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "geffect/unlearn" in row] == [0, 2, 3]


def test_modes_gradients_and_random_states_are_left_alone(tmp_path):
    trainer = training.make_trainer(tmp_path, HardwareConfig(), method=NPO, spread=0.3)
    model = trainer.engine.module
    model.train()
    model.model.layers[0].eval()
    modes = [m.training for m in model.modules()]
    state = torch.get_rng_state()
    before = copy.deepcopy(dict(model.named_parameters()))
    watching.probe_on(trainer, tmp_path).measure(trainer.probe_context())
    trainer.engine.close()
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())


@pytest.mark.slow
def test_a_resumed_run_has_seen_everything_once(tmp_path):
    method = training.preset("npo", epochs=2)
    hardware = HardwareConfig()

    def trainer(folder: Path) -> Any:
        made = training.make_trainer(folder, hardware, method=method, spread=0.3)
        made.observers = Observers(probe=watching.probe_on(made, folder, points=2))
        return made

    whole = trainer(tmp_path / "whole")
    whole.run()
    whole.engine.close()
    cut = trainer(tmp_path / "cut")
    cut.observe()
    for _ in range(2):
        cut.step()
    cut.save()
    cut.observe()
    cut.engine.close()
    again = trainer(tmp_path / "cut")
    again.run()
    again.engine.close()
    rows = [
        [
            {k: v for k, v in row.items() if k != "geffect/seconds"}
            for row in map(json.loads, (tmp_path / name / "history.jsonl").read_text().splitlines())
            if "geffect/unlearn" in row
        ]
        for name in ("whole", "cut")
    ]
    assert rows[0] == rows[1]


@pytest.mark.slow
def test_processes_and_zero_do_not_show(tmp_path):
    cases: dict[str, Any] = {
        f"{name}-{zero}": {"method": name, "hardware": {"zero": zero, "processes": 2, "micro_tokens": 200}}
        for name, zero in (("ngdiff", 2), ("npo", 3))
    }
    (tmp_path / "cases.json").write_text(json.dumps(cases))
    together(2, watching.run, tmp_path / "cases.json")
    for name, case in cases.items():
        method = training.preset(case["method"], epochs=1)
        wanted = watching.look(tmp_path / f"{name}-one", method, second_order=True, **watching.FEW)
        found = json.loads((tmp_path / f"{name}.json").read_text())
        assert_same_row(found, wanted)
        plain, seen = (load_file(tmp_path / f"{name}-{which}.safetensors") for which in ("plain", "watched"))
        assert all(torch.equal(plain[n], seen[n]) for n in plain), name


# -- where things are ----------------------------------------------------------------------------------


def test_places_of_parameters(tiny_model, family):
    model = tiny_model(family)
    found = parameter_groups(model, (1 / 3, 2 / 3))
    assert found.keys() == dict(model.named_parameters()).keys()
    kinds = {place.kind for place in found.values()}
    assert {"attention", "mlp", "norm", "embedding"} <= kinds
    assert "other" not in kinds
    blocks = {place.layer for place in found.values()} - {None}
    assert blocks == set(range(model.config.num_hidden_layers))
    assert all((place.layer is None) == (place.group in ("embedding", "head")) for place in found.values())


def test_boundaries_as_shares_and_as_layers():
    model = training.tiny_llama()
    name = "model.layers.1.mlp.up_proj.weight"
    assert parameter_groups(model, (1 / 3, 2 / 3))[name].group == "middle"
    assert parameter_groups(model, (0.2, 0.4))[name].group == "deep"
    assert parameter_groups(model, (10, 20))[name].group == "shallow"


def test_saved_models_in_the_order_of_their_numbers(tmp_path):
    for name in ("step-10", "step-5", "step-100", "other"):
        (tmp_path / name).mkdir()
        if name != "other":
            (tmp_path / name / "config.json").write_text("{}")
    found = saved_models([str(tmp_path / "*")])
    assert [path.name for path in found] == ["step-5", "step-10", "step-100"]
    assert steps_of(found) == [5, 10, 100]
    assert steps_of([Path("a"), Path("b")]) == [1, 2]


def test_weights_of_a_term_that_looks_elsewhere_are_none(tmp_path):
    trainer = training.make_trainer(tmp_path, HardwareConfig(), method=RMU, spread=0.3)
    points = Points.of("forget", training.everything()["forget"], [0, 1])
    assert implicit_weights(trainer.steps, trainer.terms[0], points, 0, {}) is None
    trainer.engine.close()


def test_a_term_on_other_answers_is_not_the_risk() -> None:
    refuse = MethodConfig(name="idk", template={"objective": "nll"}, retain={"objective": "nll"})
    template, retain = bind(refuse)
    risk = bind(MethodConfig(name="finetune", forget={"objective": "nll"}))[0]
    assert own_view(template).group == own_view(risk).group == "forget"
    assert not _alike(template, risk)
    assert _alike(retain, retain)
