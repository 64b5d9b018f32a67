"""The guardrail of sparse-autoencoder features: hand numbers, and a tiny model with an SAE of its own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import Tensor
from transformers import PreTrainedModel

import unlearn.passes.generate as generation
from tests.tolerance import PASS, approx, assert_close
from tests.unlearn.interventions.edits import answers, batch, uncached
from unlearn import interventions
from unlearn.data.batching import Batch
from unlearn.errors import UserError
from unlearn.interventions._sae import SAE, read_sae, scores, select, share, share_so_far, suppress
from unlearn.passes.forward import answer_logits, forward

Build = Callable[[str], PreTrainedModel]
FEATURES = 96


# -- hand numbers ----------------------------------------------------------------------------------------


def small_sae() -> SAE:
    """Features x, y and x + y − 1 of two dimensions; the last is let through above 2 only."""
    return SAE(
        encode=torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 1.0]]),
        encode_bias=torch.tensor([0.0, 0.0, -1.0]),
        decode=torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]]),
        threshold=torch.tensor([0.0, 0.0, 2.0]),
    )


def test_activations_and_their_threshold() -> None:
    found = small_sae()(torch.tensor([[1.0, 2.0], [2.0, 2.0], [-1.0, 0.5]]))
    assert found.tolist() == [[1, 2, 0], [2, 2, 3], [0, 0.5, 0]]  # x + y − 1 is 2, 3 and −1.5


def test_scores_are_squared_means() -> None:
    assert scores(torch.tensor([6.0, 0.0]), 4).tolist() == [2.25, 0.0]


def test_selection() -> None:
    forget = torch.tensor([9.0, 4.0, 1.0, 0.0, 16.0])
    retain = torch.tensor([9.0, 0.5, 0.1, 0.0, 32.0])
    # ratios 1, 8, 10, 0, 0.5; their median is 1
    found = select(forget, retain, count=2, forget_percentile=0, ratio_percentile=50)
    assert found.tolist() == [0, 1]
    assert select(forget, retain, count=9, forget_percentile=0, ratio_percentile=50).tolist() == [0, 1, 2]
    # the median forget score is 4
    assert select(forget, retain, count=9, forget_percentile=50, ratio_percentile=75).tolist() == [1]
    # feature 3 never fires on forget tokens
    assert select(forget, retain, count=9, forget_percentile=0, ratio_percentile=0).tolist() == [4, 0, 1, 2]
    assert (
        select(torch.zeros(3), retain[:3], count=2, forget_percentile=5, ratio_percentile=95).tolist() == []
    )


def test_share_counts_real_tokens() -> None:
    fired = torch.tensor([[True, False, True, True], [True, True, True, True], [True] * 4])
    real = torch.tensor([[True, True, True, False], [False, False, True, True], [False] * 4])
    assert share(fired, real).tolist() == approx([2 / 3, 1.0, 0.0])


def test_share_so_far_knows_the_prompt_whole() -> None:
    fired = torch.tensor([[False, True, False, False, True]])
    real = torch.tensor([[False, True, True, True, True]])
    # prompt: columns 1 and 2, half of which fire; then 1 of 3 and 2 of 4
    rho, counts = share_so_far(fired, real, torch.tensor([2]))
    assert rho[0].tolist() == approx([0.5, 0.5, 0.5, 1 / 3, 0.5])
    assert [c.tolist() for c in counts] == [[2], [4]]
    rho, counts = share_so_far(torch.tensor([[True]]), torch.tensor([[True]]), torch.tensor([-3]), counts)
    assert rho.tolist() == [[approx(3 / 5)]]


def test_share_so_far_in_pieces_is_that_of_the_whole() -> None:
    draws = torch.Generator().manual_seed(0)
    fired, real = torch.rand(5, 12, generator=draws) > 0.6, torch.ones(5, 12, dtype=torch.bool)
    real[:3, :4] = False
    ends = torch.tensor([4, 5, 5, 3, 0])
    whole, _ = share_so_far(fired, real, ends)
    first, counts = share_so_far(fired[:, :6], real[:, :6], ends)
    parts = [first]
    for t in range(6, 12):
        rho, counts = share_so_far(fired[:, t : t + 1], real[:, t : t + 1], ends - t, counts)
        parts.append(rho)
    assert torch.equal(torch.cat(parts, dim=1), whole)


def test_suppression_by_hand() -> None:
    # (2, 2): activations 2, 2, 3; features 0 and 2 to −10: less 12·(1, 0) and 13·(0.5, 0.5)
    part = small_sae().part(torch.tensor([0, 2]))
    hidden = torch.tensor([[2.0, 2.0]])
    assert suppress(hidden, part(hidden), part.decode, 10.0).tolist() == [[2 - 12 - 6.5, 2 - 6.5]]


def test_suppression_is_decoding_plus_the_error() -> None:
    sae, hidden = small_sae(), torch.tensor([[2.0, 2.0], [3.0, 1.0]])
    active = sae(hidden)
    error = hidden - active @ sae.decode
    changed = active.clone()
    changed[:, [0, 2]] = -10.0
    chosen = torch.tensor([0, 2])
    found = suppress(hidden, active[:, chosen], sae.decode[chosen], 10.0)
    assert_close(
        found, changed @ sae.decode + error, terms=len(sae.decode), scale=10 * float(sae.decode.abs().max())
    )


# -- files -----------------------------------------------------------------------------------------------


def tensors() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    shapes = {"W_enc": (32, 5), "b_enc": (5,), "W_dec": (5, 32), "b_dec": (32,), "threshold": (5,)}
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_both_file_formats(tmp_path: Path) -> None:
    save_file(tensors(), tmp_path / "sae.safetensors")
    np.savez(tmp_path / "sae.npz", **tensors())  # type: ignore[arg-type]
    one, other = (read_sae(tmp_path / f"sae.{kind}", 32) for kind in ("safetensors", "npz"))
    assert all(torch.equal(a, b) for a, b in zip(vars(one).values(), vars(other).values(), strict=True))
    hidden = torch.randn(3, 32)
    centred = read_sae(tmp_path / "sae.npz", 32, centred=True)
    assert_close(centred(hidden), one(hidden - torch.from_numpy(tensors()["b_dec"])), terms=32, scale=10)


def test_files_that_do_not_fit(tmp_path: Path) -> None:
    file = tmp_path / "sae.npz"
    np.savez(file, **tensors())  # type: ignore[arg-type]
    with pytest.raises(UserError, match=r"W_enc has shape \(32, 5\), not \(64, 5\)"):
        read_sae(file, 64)
    np.savez(file, W_enc=np.zeros((32, 5)))
    with pytest.raises(UserError, match="has no b_enc, W_dec, b_dec"):
        read_sae(file, 32)
    np.savez(file, **{**tensors(), "W_enc": np.array([{}], dtype=object)})  # type: ignore[arg-type]
    with pytest.raises(UserError, match="cannot be read"):  # a pickle
        read_sae(file, 32)


# -- on a model ------------------------------------------------------------------------------------------


class Case(NamedTuple):
    model: PreTrainedModel
    sae: Path
    forget: list[Batch]
    retain: list[Batch]


def block_output(model: PreTrainedModel, data: Batch) -> Tensor:
    seen: list[Tensor] = []
    hook = interventions.blocks(model)[0].register_forward_hook(lambda _, __, out: seen.append(out))
    with torch.no_grad():
        answer_logits(model, data)
    hook.remove()
    return seen[0]


@pytest.fixture(scope="module")
def case(tiny_model: Build, tmp_path_factory: pytest.TempPathFactory) -> Case:
    """A model that knows two sets of texts by heart, and an autoencoder of its first block."""
    model = tiny_model("llama")
    forget, retain = batch(8, 1, (2, 40)), batch(16, 2, (50, 96))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(80):
        optimizer.zero_grad()
        (-forward(model, forget).logp.mean() - forward(model, retain).logp.mean()).backward()
        optimizer.step()
    states = torch.cat([block_output(model, d)[real(d)] for d in (forget, retain)])
    file = tmp_path_factory.mktemp("sae") / "sae.safetensors"
    save_file(autoencoder(states), file)
    return Case(model.requires_grad_(False), file, [forget], [retain])


def real(data: Batch) -> Tensor:
    return torch.arange(data.input_ids.shape[1]) < data.widths[:, None]


def autoencoder(states: Tensor) -> dict[str, np.ndarray]:
    """A ReLU autoencoder with an L1 penalty."""
    draws = torch.Generator().manual_seed(0)
    decode = torch.nn.functional.normalize(torch.randn(FEATURES, states.shape[1], generator=draws), dim=-1)
    parts = [decode.T.clone(), torch.zeros(FEATURES), decode, states.mean(0)]
    for part in parts:
        part.requires_grad_()
    optimizer = torch.optim.Adam(parts, lr=1e-2)
    for _ in range(800):
        optimizer.zero_grad()
        active = (states @ parts[0] + parts[1]).relu()
        error = (active @ parts[2] + parts[3] - states).square().sum(-1).mean()
        (error + 5.0 * (active * parts[2].norm(dim=-1)).sum(-1).mean()).backward()
        optimizer.step()
    names = ("W_enc", "b_enc", "W_dec", "b_dec")
    return {name: part.detach().contiguous().numpy() for name, part in zip(names, parts, strict=True)}


def guarded(case: Case, build: Build, **options: Any) -> tuple[PreTrainedModel, Any]:
    """A copy of the model with a fitted guardrail."""
    model = build("llama")
    model.load_state_dict(case.model.state_dict())
    given = {
        "name": "dsg",
        "sae": str(case.sae),
        "layer": 0,
        "features": 5,
        "strength": 20.0,
        "ratio_percentile": 80,
        **options,
    }
    assert interventions.check(given) == []
    dsg: Any = interventions.make(given, hidden_size=32, layers=2)
    dsg.fit(model, case.forget, case.retain)
    dsg.attach(model)
    return model, dsg


def shares(case: Case, dsg: Any, data: Batch) -> Tensor:
    """The largest share so far of each sequence, from the unedited states."""
    sae = SAE(dsg.encode, dsg.encode_bias, dsg.decode, dsg.jump)
    counts = real(data) & (data.input_ids != 1)  # 1 begins a sequence in Llama's configuration
    rho, _ = share_so_far((sae(block_output(case.model, data)) > 0).any(-1), counts, data.prompt_end)
    return torch.where(real(data), rho, 0).amax(-1)


def logp_by_row(model: PreTrainedModel, data: Batch) -> list[Tensor]:
    with torch.no_grad():
        return list(forward(model, data).logp.split(data.lengths.tolist()))


@pytest.mark.slow
def test_it_forgets_and_leaves_what_is_below_the_threshold_to_the_bit(case: Case, tiny_model: Build) -> None:
    model, dsg = guarded(case, tiny_model)
    [forget], [retain] = case.forget, case.retain
    before, after = (torch.cat(logp_by_row(m, forget)).mean() for m in (case.model, model))
    assert before > -1.0
    assert after < before - 2.0

    below = shares(case, dsg, retain) <= dsg.threshold
    assert below.sum() >= 8
    assert (shares(case, dsg, forget) > dsg.threshold).sum() >= 6
    idle, guard = guarded(case, tiny_model)
    guard.threshold.fill_(torch.inf)
    for row, kept in enumerate(below.tolist()):
        if kept:
            own, without, plain = (logp_by_row(m, retain)[row] for m in (model, idle, case.model))
            assert torch.equal(own, without)
            # The plain model runs its rows without padding; log p near 0 is the difference of larger logits.
            assert_close(own, plain, terms=PASS, scale=10)


@pytest.mark.slow
def test_threshold_and_features_are_those_of_plain_loops(case: Case, tiny_model: Build) -> None:
    _, dsg = guarded(case, tiny_model, features=3, ratio_percentile=80, threshold_percentile=75)
    sae = read_sae(case.sae, 32)
    means, fires = {}, []
    for name, [data] in (("forget", case.forget), ("retain", case.retain)):
        rows = block_output(case.model, data)
        kept = [rows[b, t] for b, t in np.argwhere((real(data) & (data.input_ids != 1)).numpy())]
        means[name] = np.mean([sae(h).double().numpy() for h in kept], axis=0) ** 2
        if name == "retain":
            for b in range(len(rows)):
                fires.append([sae(rows[b, t])[dsg.features] > 0 for t in range(int(data.widths[b]))])
    ratio = means["forget"] / (means["retain"] + 1e-21)
    good = ratio >= np.percentile(ratio, 80)
    good &= means["forget"] >= np.percentile(means["forget"], 5)
    order = [f for f in np.argsort(-means["forget"]) if good[f]][:3]
    assert dsg.features.tolist() == order
    rho = [np.mean([bool(each.any()) for each in row]) for row in fires]
    assert float(dsg.threshold) == approx(np.percentile(rho, 75))


@pytest.mark.slow
def test_batches_may_be_many_and_small(case: Case, tiny_model: Build) -> None:
    _, whole = guarded(case, tiny_model)
    pieces = [batch(8, 1, (2, 40)), batch(8, 1, (2, 40))]
    _, dsg = guarded(case._replace(forget=pieces), tiny_model)  # the same texts twice: the same means
    assert torch.equal(dsg.features, whole.features)
    assert torch.equal(dsg.threshold, whole.threshold)


@pytest.mark.slow
@pytest.mark.parametrize("first_round", [2, 32])
def test_generation_is_that_of_whole_passes(
    case: Case, tiny_model: Build, first_round: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, _ = guarded(case, tiny_model)
    [forget], [retain] = case.forget, case.retain
    prompts = [
        data.input_ids[row, : data.prompt_end[row] + 1].tolist()
        for data in (forget, retain)
        for row in range(4)
    ]
    monkeypatch.setattr(generation, "_FIRST_ROUND", first_round)
    found = answers(model, prompts, 8)
    assert found == answers(model, prompts, 1)
    assert found == [uncached(model, prompt) for prompt in prompts]
    assert found[:4] != answers(case.model, prompts[:4], 8)


@pytest.mark.slow
def test_saved_loaded_and_in_half_precision(case: Case, tiny_model: Build, tmp_path: Path) -> None:
    model, dsg = guarded(case, tiny_model)
    interventions.save(model, tmp_path)
    assert str(case.sae.parent) not in (tmp_path / "interventions.json").read_text()
    again = tiny_model("llama")
    again.load_state_dict(case.model.state_dict())
    [loaded] = interventions.load(again, tmp_path)
    [forget] = case.forget
    assert torch.equal(answer_logits(again, forget), answer_logits(model, forget))
    again.bfloat16()
    assert next(again.parameters()).dtype == torch.bfloat16
    for name, tensor in dsg.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    assert answer_logits(again, forget).dtype == torch.bfloat16


@pytest.mark.slow
def test_unfitted_it_is_refused(case: Case, tiny_model: Build) -> None:
    dsg = interventions.make({"name": "dsg", "sae": str(case.sae), "layer": 0}, hidden_size=32, layers=2)
    with pytest.raises(RuntimeError, match="call fit"):
        dsg.attach(tiny_model("llama"))


@pytest.mark.slow
def test_features_that_do_not_separate_the_sets(case: Case, tiny_model: Build, tmp_path: Path) -> None:
    arrays = {name: np.zeros_like(array) for name, array in tensors().items()}
    save_file(arrays, tmp_path / "dead.safetensors")
    with pytest.raises(UserError, match="no feature of the autoencoder"):
        guarded(case._replace(sae=tmp_path / "dead.safetensors"), tiny_model)
