"""Gradients taken from, and put back into, DeepSpeed: the same numbers at every stage and world size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tolerance import PASS, approx, relative
from tests.unlearn.training import two_gradients as gradients
from tests.worlds import together
from unlearn.config import HardwareConfig
from unlearn.training.engine import NonFiniteGradient

Tensors = Mapping[str, torch.Tensor]
STAGES: list[dict[str, Any]] = [{"zero": zero} for zero in (0, 1, 2, 3)]
ENDS, MIDDLE = [STAGES[0], STAGES[3]], STAGES[1:3]
OFFLOADED: list[dict[str, Any]] = [{"zero": 2, "offload": True}, {"zero": 3, "offload": True}]
HALF: list[dict[str, Any]] = [{"zero": zero, "dtype": "bf16"} for zero in (0, 2, 3)]
HALVED: list[dict[str, Any]] = [{"gradients": "bf16", **hardware} for hardware in HALF]
HALVED_OFFLOADED: list[dict[str, Any]] = [{**hardware, "offload": True} for hardware in HALVED[1:]]


def slow(cases: list[dict[str, Any]]) -> list[Any]:
    return [pytest.param(case, marks=pytest.mark.slow) for case in cases]


# Below the norm of the normalised difference of nearly orthogonal gradients, √2.
CLIP = 0.5
# Of the norm of all: errors of single numbers average out in it. In bf16, what is stored is rounded.
RELATIVE = relative(terms=PASS)
HALF_RELATIVE = relative(torch.bfloat16)
# AdamW divides by the root of the second moment, as `assert_trained_alike` says.
MOVED = math.sqrt(relative())


@pytest.fixture(scope="module")
def plain() -> Tensors:
    return gradients.plain(clip=CLIP)


@pytest.fixture(scope="module")
def plain_single() -> Tensors:
    return gradients.plain_single()


def assert_near(found: Tensors, wanted: Tensors, prefix: str, share: float = RELATIVE) -> None:
    """All tensors under a prefix, as one vector, within a share of its norm."""
    names = [name for name in wanted if name.startswith(prefix)]
    assert names
    assert set(names) == {name for name in found if name.startswith(prefix)}
    a, b = (torch.cat([d[name].double().flatten() for name in names]) for d in (found, wanted))
    assert float((a - b).norm() / b.norm()) <= share


def assert_trained(found: Tensors, wanted: Tensors) -> None:
    assert_near(found, wanted, "gram/")
    assert_near(found, wanted, "norm/")
    # AdamW hardly sees a common factor of all gradients, its first moment does.
    first = torch.cat([t.flatten() for name, t in found.items() if name.startswith("first/")])
    assert float(first.norm()) == approx(CLIP, terms=PASS)
    assert_near(found, wanted, "first/")
    start = {f"weight/{name}": p.detach() for name, p in gradients.tiny_llama().named_parameters()}
    moved, should = ({n: d[n] - p for n, p in start.items()} for d in (found, wanted))
    assert_near(moved, should, "weight/", MOVED)


def test_the_case_is_one_where_a_mistake_shows(plain):
    (f, _), (mixed, r) = plain["gram/0"].tolist()
    assert math.sqrt(r / f) > 3, "the terms' gradients differ in size"
    assert abs(mixed) > 1e-3 * math.sqrt(f * r), "and are not orthogonal"
    # ‖g_R/‖g_R‖ − g_F/‖g_F‖‖² = 2 − 2 cos
    assert float(plain["norm/0"]) == pytest.approx(math.sqrt(2 - 2 * mixed / math.sqrt(f * r)))
    assert all(float(plain[f"norm/{step}"]) > CLIP for step in range(gradients.STEPS))


@pytest.mark.parametrize("hardware", ENDS[:1] + slow(ENDS[1:] + MIDDLE + OFFLOADED), ids=str)
def test_a_taken_gradient_is_that_of_autograd(plain_single, hardware):
    found = dict(gradients.single(HardwareConfig(**hardware)))
    for term in gradients.ROWS:
        assert_near(found, plain_single, f"{term}/")


@pytest.mark.parametrize("hardware", ENDS[:1] + slow(ENDS[1:] + MIDDLE + OFFLOADED), ids=str)
def test_steps_by_two_gradients_are_those_of_plain_torch(plain, hardware):
    assert_trained(gradients.train(HardwareConfig(**hardware), clip=CLIP), plain)


@pytest.mark.parametrize("hardware", slow(HALF + HALVED + HALVED_OFFLOADED), ids=str)
def test_bf16_is_as_good_as_bf16(plain, plain_single, hardware):
    found = gradients.train(HardwareConfig(**hardware), clip=CLIP)
    for prefix in ("gram/0", "norm/0", "first/"):
        assert_near(found, plain, prefix, HALF_RELATIVE)
    single = dict(gradients.single(HardwareConfig(**hardware)))
    for term in gradients.ROWS:
        assert_near(single, plain_single, f"{term}/", HALF_RELATIVE)


@pytest.mark.parametrize(
    "hardware", ENDS[:1] + slow(ENDS[1:] + MIDDLE + HALVED[:1] + HALVED_OFFLOADED[:1]), ids=str
)
def test_taking_and_putting_back_changes_nothing(hardware):
    ends = []
    for detour in (False, True):
        with gradients.an_engine(HardwareConfig(**hardware)) as engine:
            for step in range(gradients.STEPS):
                if detour:  # what is taken and dropped leaves no trace
                    gradients.backward(engine, "retain", step)
                    engine.take_gradients()
                gradients.backward(engine, "forget", step)
                if detour:
                    engine.put_gradients(engine.take_gradients())
                engine.step(gradients.LR)
            ends.append({key: gradients.full(engine, key) for key in ("weight", "exp_avg", "exp_avg_sq")})
    for key, tensors in ends[0].items():
        assert all(torch.equal(t, ends[1][key][name]) for name, t in tensors.items()), key


@pytest.mark.parametrize("hardware", ENDS[:1] + slow(ENDS[1:] + MIDDLE), ids=str)
@pytest.mark.parametrize("factor", [math.inf, math.nan])
def test_a_step_without_a_finite_gradient_makes_no_update(hardware, factor):
    with gradients.an_engine(HardwareConfig(**hardware), clip=CLIP) as engine:
        ids = gradients.tokens("forget", 0)
        before = engine.live_weights()
        engine.backward(gradients.loss(engine.model, "forget", ids) * factor)
        assert not math.isfinite(engine.step(gradients.LR))
        assert all(torch.equal(a, b) for a, b in zip(before, engine.live_weights(), strict=True))
        gradients.backward(engine, "forget", 0)
        assert math.isfinite(engine.step(gradients.LR))


@pytest.mark.parametrize("hardware", ENDS[:1] + slow(ENDS[1:] + MIDDLE), ids=str)
def test_what_is_not_finite_is_refused_and_forgotten(hardware):
    with gradients.an_engine(HardwareConfig(**hardware), clip=CLIP) as engine:
        ids = gradients.tokens("forget", 0)
        before = engine.live_weights()
        engine.backward(gradients.loss(engine.model, "forget", ids) * math.inf)
        with pytest.raises(NonFiniteGradient, match="not finite"):
            engine.take_gradients()
        gradients.backward(engine, "forget", 0)
        taken = engine.take_gradients()
        assert math.isfinite(float(engine.gram([taken])[0, 0]))
        with pytest.raises(NonFiniteGradient, match="is nan"):
            engine.put_gradients([t * math.nan for t in taken])
        engine.put_gradients(taken)
        engine.step(lr=0.0)
        assert all(torch.equal(a, b) for a, b in zip(before, engine.live_weights(), strict=True))


def test_a_wrong_order_of_calls_is_refused():
    with gradients.an_engine(HardwareConfig()) as engine:
        with pytest.raises(RuntimeError, match="no backward since"):
            engine.take_gradients()
        gradients.backward(engine, "forget", 0)
        taken = engine.take_gradients()
        with pytest.raises(RuntimeError, match="no backward since"):
            engine.take_gradients()
        gradients.backward(engine, "retain", 0)
        engine.put_gradients(taken)  # instead of what is summed
        with pytest.raises(RuntimeError, match="would be lost"):
            gradients.backward(engine, "forget", 0)
        assert engine.step(lr=0.0) == approx(math.sqrt(float(engine.gram([taken])[0, 0])), terms=PASS)
        with (
            engine.with_weights(engine.live_weights()),
            pytest.raises(RuntimeError, match="step inside with_weights"),
        ):
            engine.step(lr=0.0)
        with pytest.raises(ValueError, match="shapes of live_weights"), engine.with_weights(taken[:1]):
            pass


def assert_left_no_trace(found: Tensors, undisturbed: Tensors, dtype: str) -> None:
    # Without weights all logits are 0, so that each of the 97 tokens is as probable: ln 97.
    kind, terms = (torch.bfloat16, 1) if dtype == "bf16" else (torch.float32, 97)
    assert float(found["zero"]) == approx(math.log(97), dtype=kind, terms=terms)
    assert torch.equal(found["start"], found["first"])
    assert not torch.equal(found["last"], found["first"])
    assert all(torch.equal(found[name], tensor) for name, tensor in undisturbed.items())


@pytest.mark.parametrize("hardware", ENDS[:1] + slow(ENDS[1:] + MIDDLE + HALF[:1] + HALVED[:1]), ids=str)
def test_forwards_with_other_weights_leave_no_trace(hardware):
    runs = [gradients.probed(HardwareConfig(**hardware), probe=probe) for probe in (True, False)]
    assert_left_no_trace(runs[0], runs[1], hardware.get("dtype", "fp32"))


def in_two_processes(directory: Path, cases: Mapping[str, Any]) -> dict[str, dict[str, torch.Tensor]]:
    file = directory / "cases.json"
    file.write_text(json.dumps(cases))
    together(2, gradients.run, file)
    return {name: load_file(directory / f"{name}.safetensors") for name in cases}


@pytest.mark.slow
def test_two_processes_give_the_same(plain, plain_single, tmp_path):
    hardware = {str(h): {"processes": 2, **h} for h in [*ENDS, STAGES[2], HALF[0], HALVED[0]]}
    cases: dict[str, Any] = {}
    for name, h in hardware.items():
        cases |= {f"train {name}": ["train", h, {"clip": CLIP}], f"single {name}": ["single", h, {}]}
    probed = {name: h for name, h in hardware.items() if h in (ENDS[-1], HALF[0])}
    for name, h in probed.items():
        for probe in (True, False):
            cases[f"probed {probe} {name}"] = ["probed", h, {"probe": probe}]
    found = in_two_processes(tmp_path, cases)
    for name, h in hardware.items():
        half = h.get("dtype") == "bf16"
        if half:
            for prefix in ("gram/0", "norm/0", "first/"):
                assert_near(found[f"train {name}"], plain, prefix, HALF_RELATIVE)
        else:
            assert_trained(found[f"train {name}"], plain)
        for term in gradients.ROWS:
            assert_near(
                found[f"single {name}"], plain_single, f"{term}/", HALF_RELATIVE if half else RELATIVE
            )
    for name, h in probed.items():
        looked, undisturbed = (found[f"probed {probe} {name}"] for probe in (True, False))
        assert_left_no_trace(looked, undisturbed, h.get("dtype", "fp32"))
