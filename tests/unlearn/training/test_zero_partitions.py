"""Gradients by parameter from DeepSpeed's shares: the same at every stage, world size and precision."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests.tolerance import PASS, approx, assert_close, relative
from tests.unlearn.training import partition_gradients as shares
from tests.unlearn.training.two_gradients import BETAS
from tests.worlds import together
from unlearn.training.zero_partitions import inner

Tensors = Mapping[str, torch.Tensor]
# Parameters that are gathered for each use, and a share for nearly each: most matrices have 1024 elements.
DIVIDED = {"stage3_param_persistence_threshold": 0, "sub_group_size": 1000}
STAGES: list[dict[str, Any]] = [{"zero": zero} for zero in (0, 1, 2, 3)]
OFFLOADED: list[dict[str, Any]] = [{"zero": zero, "offload": True} for zero in (1, 2, 3)]
HALF: list[dict[str, Any]] = [{"zero": zero, "dtype": "bf16"} for zero in (2, 3)]
BOTH: list[dict[str, Any]] = [{**half, "offload": True} for half in HALF]


def fast(count: int, cases: list[dict[str, Any]]) -> list[Any]:
    """All but the first cases marked as slow."""
    return [*cases[:count], *(pytest.param(case, marks=pytest.mark.slow) for case in cases[count:])]


# As adapters have it: few trained parameters among frozen ones, one kind of them alone in its group.
FEW = r"layers\.[01]\.self_attn\.q_proj|layers\.1\.input_layernorm"
# Of the norm of all: errors of single numbers average out in it. In bf16, what is stored is rounded.
RELATIVE = relative(terms=PASS)
HALF_RELATIVE = relative(torch.bfloat16)


@cache
def plain(trained: str) -> Tensors:
    return shares.plain(trained)


def under(found: Tensors, prefix: str) -> dict[str, torch.Tensor]:
    return {n.removeprefix(prefix): t.double() for n, t in found.items() if n.startswith(prefix)}


def assert_near(found: Tensors, wanted: Tensors, share: float) -> None:
    """Compare tensor by tensor, within a share of the norm of all; zeros only where expected."""
    assert found.keys() == wanted.keys()
    norm = torch.stack([t.norm() for t in wanted.values()]).norm()
    for name, tensor in wanted.items():
        assert found[name].shape == tensor.shape, name
        assert float((found[name] - tensor).norm() / norm) <= share, name
        if not tensor.any():
            assert not found[name].any(), name


def assert_right(found: Tensors, hardware: Mapping[str, Any], trained: str) -> None:
    half = hardware.get("dtype") == "bf16"
    share = HALF_RELATIVE if half else RELATIVE
    wanted = {kind: under(plain(trained), f"{kind}/") for kind in shares.PARTS}
    whole = {kind: under(found, f"{kind}/") for kind in shares.PARTS}
    for kind in shares.PARTS:
        assert_near(whole[kind], wanted[kind], share)

    by = under(found, "by/")
    assert by.keys() == wanted["deep"].keys()
    assert_close(torch.stack(list(by.values())).sum(0), found["gram"], terms=len(by))
    for name, gram in by.items():
        flat = torch.stack([whole[kind][name].flatten() for kind in shares.PARTS])
        assert_close(gram, flat @ flat.T, terms=flat.shape[1])

    # Steps by d, s and d + s: (1 − β)(β²d + βs + (d + s)).
    β, d, s = BETAS[0], wanted["deep"], wanted["shallow"]
    moments = {name: (1 - β) * ((1 + β**2) * d[name] + (1 + β) * s[name]) for name in d}
    assert_near(under(found, "moment/"), moments, share)

    # The same rounded weights, so that bf16 differs by the rounding of activations only.
    down = {name: t.float() for name, t in whole["deep"].items()}
    moved = shares.plain_moved(trained, down, torch.bfloat16 if half else torch.float32)
    assert float(found["moved"]) == approx(
        moved, dtype=torch.bfloat16 if half else torch.float32, terms=1 if half else PASS
    )


@pytest.mark.parametrize("hardware", fast(1, [*STAGES, *OFFLOADED, *HALF, *BOTH]), ids=str)
def test_all_parameters(hardware):
    found = shares.measured(hardware)
    assert_right(found, hardware, "")
    assert float(found["start"] - found["moved"]) > 0.5, "the move is one that shows"


@pytest.mark.parametrize("hardware", fast(0, [STAGES[3], STAGES[1], OFFLOADED[1], BOTH[1]]), ids=str)
def test_few_parameters_among_frozen_ones(hardware):
    assert_right(shares.measured(hardware, trained=FEW), hardware, FEW)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("hardware", "trained"),
    [(STAGES[3], ""), (OFFLOADED[2], ""), (HALF[1], FEW)],
    ids=["all", "offload", "few"],
)
def test_many_sub_groups(hardware, trained):
    assert_right(shares.measured(hardware, trained=trained, zero=DIVIDED), hardware, trained)


def test_the_case_is_one_where_a_mistake_shows():
    deep, shallow = (under(plain(""), f"{kind}/") for kind in ("deep", "shallow"))
    sizes = [float(torch.stack([t.norm() for t in each.values()]).norm()) for each in (deep, shallow)]
    assert 0.3 < sizes[0] / sizes[1] < 3
    assert all(t.any() for t in deep.values())
    without = {name for name, t in shallow.items() if not t.any()}
    assert without == {name for name in shallow if "layers.1" in name or name == "model.norm.weight"}


@pytest.mark.parametrize("hardware", fast(1, [*STAGES, *OFFLOADED[1:], HALF[1]]), ids=str)
def test_measuring_changes_nothing(hardware):
    assert_same(*(shares.trained_on(hardware, look=look) for look in (True, False)))


def assert_same(looked: Tensors, undisturbed: Tensors) -> None:
    assert looked.keys() == undisturbed.keys()
    for name, tensor in undisturbed.items():
        assert torch.equal(looked[name], tensor), name


def test_inner_products_in_pieces(monkeypatch):
    monkeypatch.setattr("unlearn.training.zero_partitions.CHUNK", 2)
    found = inner([torch.tensor([[1.0, 2.0, 3.0]]), torch.tensor([[4.0, 5.0, 6.0]])])
    # 1 + 4 + 9, 4 + 10 + 18 and 16 + 25 + 36.
    assert found.tolist() == [[14.0, 32.0], [32.0, 77.0]]
    assert inner([torch.empty(0), torch.empty(0)]).tolist() == [[0.0, 0.0], [0.0, 0.0]]


@pytest.mark.slow
def test_two_processes_give_the_same(tmp_path):
    measured: list[tuple[dict[str, Any], str, dict[str, Any]]] = [
        (h, "", {}) for h in [STAGES[2], STAGES[3], BOTH[1]]
    ]
    measured += [(STAGES[1], FEW, {}), (STAGES[3], FEW, DIVIDED)]
    undisturbed = [STAGES[3]]
    cases: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {}
    for index, (hardware, trained, zero) in enumerate(measured):
        options = {"trained": trained, "zero": zero}
        cases[f"measured {index}"] = ("measured", {"processes": 2, **hardware}, options)
    for index, hardware in enumerate(undisturbed):
        for look in (True, False):
            cases[f"{look} {index}"] = ("trained_on", {"processes": 2, **hardware}, {"look": look})
    together(2, shares.run, tmp_path, cases)
    found = {name: load_file(tmp_path / f"{name}.safetensors") for name in cases}
    for index, (hardware, trained, _) in enumerate(measured):
        assert_right(found[f"measured {index}"], hardware, trained)
    for index in range(len(undisturbed)):
        assert_same(found[f"True {index}"], found[f"False {index}"])
