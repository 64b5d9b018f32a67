"""The contract of interventions, and gated edits (GRUN) under it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

import unlearn.passes.generate as generation
from tests.tolerance import PASS, assert_close, assert_trained_alike
from tests.unlearn.interventions.edits import PROMPTS, answers, batch, uncached
from unlearn import interventions
from unlearn.config import HardwareConfig
from unlearn.data.batching import Batch
from unlearn.distributed import start_world
from unlearn.errors import ConfigError, UserError
from unlearn.files import read_json
from unlearn.interventions.grun import default_layers, orthonormal
from unlearn.passes.forward import answer_logits, forward
from unlearn.passes.prompt_layout import (
    Layout,
    all_prompt,
    current_layout,
    laid_out,
    left_padded,
    right_padded,
)
from unlearn.training.engine import Engine

Build = Callable[[str], PreTrainedModel]
BOTH = {"name": "grun", "layers": [0, 1], "width": 8, "width2": 4}


def with_grun(model: Any, options: dict[str, Any] | None = None, *, scrambled: int | None = None) -> Any:
    """An attached edit; scrambled, it is far from the identity."""
    shape = {"hidden_size": model.config.hidden_size, "layers": model.config.num_hidden_layers}
    made = interventions.make(options or BOTH, **shape)
    if scrambled is not None:
        draws = torch.Generator().manual_seed(scrambled)
        for parameter in made.parameters():
            parameter.data.normal_(generator=draws)
    made.attach(model)
    return made


def block_outputs(model: PreTrainedModel, batch: Batch) -> list[Tensor]:
    """Hidden states after each block, edits included."""
    seen: list[Tensor] = []
    hooks = [
        block.register_forward_hook(lambda _, __, out: seen.append(out[0] if isinstance(out, tuple) else out))
        for block in interventions.blocks(model)
    ]
    answer_logits(model, batch)
    for hook in hooks:
        hook.remove()
    return seen


# -- layouts ---------------------------------------------------------------------------------------------


def test_layouts_of_both_sides() -> None:
    right = right_padded(torch.tensor([1, 0]), torch.tensor([4, 2]), 4)
    assert right.valid.tolist() == [[True] * 4, [True, True, False, False]]
    assert right.prompt_end.tolist() == [1, 0]
    # 2 prompt tokens + 2 of an answer; 1 prompt token, which ends in the last column
    left = left_padded(torch.tensor([2, 1]), torch.tensor([4, 1]), 4, torch.device("cpu"))
    assert left.valid.tolist() == [[True] * 4, [False, False, False, True]]
    assert left.prompt_end.tolist() == [1, 3]
    assert all_prompt(torch.zeros(2, 5, dtype=torch.long)).prompt_end.tolist() == [4, 4]


def test_layout_is_of_its_block_only() -> None:
    outer, inner = (all_prompt(torch.zeros(1, n, dtype=torch.long)) for n in (1, 2))
    assert current_layout() is None
    with laid_out(outer):
        with laid_out(inner):
            assert current_layout() is inner
        assert current_layout() is outer
    assert current_layout() is None


def test_a_pass_that_continues_a_cache() -> None:
    layout = Layout(torch.tensor([2, 0]), torch.tensor([[True] * 3, [True, False, False]]))
    ids = torch.zeros(2, 2, dtype=torch.long)
    piece = interventions.Pass(layout, 2, ids)  # columns 2 and 3; what is added to the rows is real
    assert piece.real.tolist() == [[True, True], [False, True]]
    assert piece.prompt_end.tolist() == [0, -2]
    assert not piece.past_prompts
    after = interventions.Pass(layout, 3, ids)
    assert after.past_prompts
    assert after.real.all()


def test_without_a_layout_a_pass_is_refused(tiny_model: Build) -> None:
    model = tiny_model("llama")
    with_grun(model)
    with pytest.raises(RuntimeError, match=r"unlearn\.passes\.prompt_layout\.laid_out"):
        model(input_ids=torch.zeros(1, 2, dtype=torch.long))


# -- options ---------------------------------------------------------------------------------------------


def test_check_names_keys_and_near_misses(tmp_path: Path) -> None:
    check = interventions.check
    assert check({"name": "grun"}) == []
    assert check({"name": "contrast", "alpha": 2}) == []
    known = ", ".join(interventions.INTERVENTIONS.names())
    assert check({}) == [f"method.intervention.name is not set (known: {known})"]
    assert "(did you mean grun?)" in check({"name": "gru"})[0]
    assert check({"name": "grun", "ranks": 4})[0] == (
        "method.intervention.ranks=4: intervention grun has no option ranks (did you mean rank?)"
    )
    assert len(check({"name": "grun", "rank": 0, "gate": "mpl"})) == 2
    assert check({"name": "dsg"}) == ["method.intervention.sae is not set: intervention dsg needs it"]
    assert "no such file" in check({"name": "dsg", "sae": str(tmp_path / "none.npz")})[0]
    assert "give a .safetensors or .npz" in check({"name": "dsg", "sae": "sae.pt"})[0]


def test_what_each_kind_needs() -> None:
    kinds = {name: {"name": name} for name in interventions.INTERVENTIONS.names()}
    gated = [name for name, kind in kinds.items() if interventions.is_gated(kind)]
    assert "grun" in gated
    assert all(interventions.trains(kinds[name]) for name in gated)
    assert not interventions.trains(kinds["dsg"])
    assert set(interventions.sets(kinds["dsg"])) == {"forget", "retain"}
    assert interventions.files({"name": "dsg", "sae": "sae.npz"}) == {"sae": "sae.npz"}


def test_layers_and_rank_meet_the_model() -> None:
    with pytest.raises(ConfigError, match=r"layers=2: the model has 2 layers, 0 to 1") as found:
        interventions.make({"name": "grun", "layers": [0, 2], "rank": 33}, hidden_size=32, layers=2)
    assert len(found.value.problems) == 2
    with pytest.raises(UserError, match=r"method\.reinforced"):
        interventions.make({"name": "contrast"}, hidden_size=32, layers=2)


def test_default_layers_follow_the_depth() -> None:
    assert default_layers(32) == [20, 25, 31]
    assert default_layers(16) == [10, 12, 15]  # ceil(10.5), ceil(13) and 16, counted from 0
    assert default_layers(4) == [2, 3]
    assert default_layers(1) == [0]


# -- one edit --------------------------------------------------------------------------------------------


def test_orthonormal_rows_by_hand() -> None:
    # Gram-Schmidt: (3, 4) is (0.6, 0.8); (1, 0) less 0.6·(0.6, 0.8) is (0.64, −0.48), normed (0.8, −0.6)
    found = orthonormal(torch.tensor([[3.0, 4.0], [1.0, 0.0]]))
    assert_close(found, torch.tensor([[0.6, 0.8], [0.8, -0.6]]), terms=4)
    assert_close(orthonormal(found), found, terms=4)


def test_fresh_edit_changes_no_bit(family: str, tiny_model: Build) -> None:
    model = tiny_model(family)
    before = answer_logits(model, batch())
    with_grun(model)
    assert torch.equal(answer_logits(model, batch()), before)


def test_edit_is_the_formula_at_the_last_prompt_token_alone(family: str, tiny_model: Build) -> None:
    model, data = tiny_model(family), batch()
    before = block_outputs(model, data)[-1]
    grun = with_grun(model, {**BOTH, "layers": [1], "gate": "linear"}, scrambled=1)
    grun.edits[0].gate[0].weight.data.mul_(0.01)  # a gate that is nowhere shut
    after = block_outputs(model, data)[-1]

    same = (before == after).all(-1)
    wanted = torch.arange(same.shape[1]) != data.prompt_end[:, None]
    assert torch.equal(same, wanted)

    edit = grun.edits[0]
    rows = torch.arange(len(before))
    h = before[rows, data.prompt_end].double()
    rotation = torch.linalg.qr(edit.rotation.double().T).Q.T
    # The projection RᵀR is free of the signs of R's rows; Rᵀ(Wh + b) is not: rows as those of the raw tensor
    rotation = rotation * (rotation * edit.rotation.double()).sum(-1, keepdim=True).sign()
    gate = (h @ edit.gate[0].weight.double().T + edit.gate[0].bias.double()).sigmoid()
    inner = h @ edit.weight.double().T + edit.bias.double() - h @ rotation.T
    expected = h + gate * (inner @ rotation)
    assert_close(after[rows, data.prompt_end], expected, terms=PASS)
    assert not torch.equal(h, expected)


def test_only_the_edit_has_gradients(family: str, tiny_model: Build) -> None:
    model = tiny_model(family)
    grun = with_grun(model, scrambled=1)
    logp = forward(model, batch()).logp
    gate = interventions.gates(model)
    assert gate.shape == (6, 2)
    (logp.mean() + gate.square().mean()).backward()
    assert {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0} == {
        f"interventions.0.{name}" for name, _ in grun.named_parameters()
    }


def test_gradient_checkpointing_changes_no_gradient(tiny_model: Build) -> None:
    grads = []
    for on in (False, True):
        model = tiny_model("llama").train()
        grun = with_grun(model, scrambled=1)
        if on:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            model.enable_input_require_grads()
        logp = forward(model, batch()).logp
        (logp.mean() + interventions.gates(model).mean()).backward()
        grads.append([p.grad for p in grun.parameters()])
    for kept, made_again in zip(*grads, strict=True):
        assert_close(made_again, kept, terms=PASS)


def test_saved_and_loaded_it_gives_the_same(family: str, tiny_model: Build, tmp_path: Path) -> None:
    model = tiny_model(family)
    first = with_grun(model, scrambled=1)
    second = with_grun(model, {**BOTH, "layers": [1], "gate": "linear", "rank": 2}, scrambled=2)
    expected = answer_logits(model, batch())
    interventions.save(model, tmp_path)

    again = tiny_model(family)
    plain = answer_logits(again, batch())
    loaded = interventions.load(again, tmp_path)
    assert [type(each) for each in loaded] == [type(first), type(second)]
    assert torch.equal(answer_logits(again, batch()), expected)
    assert not torch.equal(plain, expected)
    frozen = {name for name, p in again.named_parameters() if not p.requires_grad}
    assert frozen == {name for name, _ in again.named_parameters() if name.startswith("interventions.")}
    assert {file.name for file in tmp_path.iterdir()} == {"interventions.json", "interventions.safetensors"}

    for each in loaded:
        each.detach()
    assert torch.equal(answer_logits(again, batch()), plain)


def test_saved_from_a_whole_state_dict(tmp_path: Path, tiny_model: Build) -> None:
    model = tiny_model("llama")
    with_grun(model, scrambled=1)
    own, other = interventions.split(model.state_dict())
    assert own.keys() == tiny_model("llama").state_dict().keys()
    interventions.save(model, tmp_path, {name: tensor * 2 for name, tensor in other.items()})
    again = tiny_model("llama")
    interventions.load(again, tmp_path)
    found = again.state_dict()
    assert all(torch.equal(found[name], tensor * 2) for name, tensor in other.items())


def test_a_folder_without_them_or_of_another_model(tmp_path: Path, tiny_model: Build) -> None:
    model = tiny_model("llama")
    interventions.save(model, tmp_path)
    assert list(tmp_path.iterdir()) == []
    assert interventions.load(model, tmp_path) == []
    with_grun(model)
    interventions.save(model, tmp_path)
    facts = read_json(tmp_path / "interventions.json")
    assert facts["interventions"][0]["layers"] == [0, 1]
    other = tiny_model("gpt2")
    other.config.n_layer = 1
    with pytest.raises(UserError, match="cannot be attached"):
        interventions.load(other, tmp_path)


def test_of_two_edits_the_newer_is_trained(tiny_model: Build) -> None:
    model = tiny_model("llama")
    first = with_grun(model, scrambled=1)
    kept = first.state_dict()
    once = answer_logits(model, batch())
    second = with_grun(model, {**BOTH, "layers": [1]})
    assert torch.equal(answer_logits(model, batch()), once)  # fresh, it adds nothing to the first
    forward(model, batch()).logp.mean().backward()
    assert interventions.gates(model).shape == (6, 1)
    assert all(p.grad is None for p in first.parameters())
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in second.parameters())
    assert all(torch.equal(kept[name], tensor) for name, tensor in first.state_dict().items())


def test_a_copy_of_the_model_has_an_edit_of_its_own(tiny_model: Build) -> None:
    model = tiny_model("llama")
    grun = with_grun(model, scrambled=1)
    before = answer_logits(model, batch())  # leaves gates behind, which have a graph
    again = copy.deepcopy(model)
    for parameter in grun.parameters():
        parameter.data.zero_()
    assert torch.equal(answer_logits(again, batch()), before)
    assert not torch.equal(answer_logits(model, batch()), before)
    assert interventions.gates(again).abs().min() > 0


def test_gates_without_a_trainable_edit(tiny_model: Build) -> None:
    model = tiny_model("llama")
    with pytest.raises(RuntimeError, match="no trainable gated edit"):
        interventions.gates(model)
    with_grun(model)
    with pytest.raises(RuntimeError, match="before the model was called"):
        interventions.gates(model)


def test_gate_learns_to_tell_two_sets_of_prompts(tiny_model: Build) -> None:
    model = tiny_model("llama")
    grun = with_grun(model, {"name": "grun", "layers": [0, 1], "width": 32, "width2": 16})
    data = batch(16)
    wanted = torch.tensor([1.0] * 8 + [0.0] * 8)[:, None].expand(16, 2)
    optimizer = torch.optim.Adam(grun.parameters(), lr=1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        forward(model, data)
        gate = interventions.gates(model)
        nn.functional.binary_cross_entropy_with_logits(gate, wanted).backward()
        optimizer.step()
    assert torch.equal(gate > 0, wanted > 0.5)


# -- generation ------------------------------------------------------------------------------------------


def test_left_padding_and_rounds_change_no_answer(
    family: str, tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny_model(family)
    untouched = answers(model, PROMPTS, 4)
    with_grun(model, scrambled=3)
    whole = answers(model, PROMPTS, 4)
    monkeypatch.setattr(generation, "_FIRST_ROUND", 2)  # several rounds
    found = answers(model, PROMPTS, 4)
    assert found == whole == [answers(model, [prompt], 1)[0] for prompt in PROMPTS]
    assert found == [uncached(model, prompt) for prompt in PROMPTS]
    assert found != untouched


# -- under DeepSpeed -------------------------------------------------------------------------------------


def trained(zero: int, tiny_model: Build) -> dict[str, Tensor]:
    model = tiny_model("llama")
    with_grun(model)
    hardware = HardwareConfig(zero=zero)
    engine = Engine(model, start_world("cpu"), hardware, clip=1.0, weight_decay=0.0, betas=(0.9, 0.999))
    engine.model.train()
    for _ in range(4):
        logp = forward(engine.model, batch()).logp
        engine.backward(logp.mean() + interventions.gates(engine.model).square().mean())
        engine.step(1e-2)
    weights = {name: tensor.clone() for name, tensor in engine.weights()}
    engine.close()
    return weights


@pytest.mark.slow
def test_trains_the_same_at_every_zero_stage(tiny_model: Build) -> None:
    model = tiny_model("llama")
    with_grun(model)
    start, expected = model.state_dict(), trained(0, tiny_model)
    assert expected.keys() == start.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, start[name]) != name.startswith("interventions."), name
    for zero in (1, 2, 3):
        assert_trained_alike(trained(zero, tiny_model), expected, lr=1e-2, steps=4, named=f"ZeRO {zero}")
