"""Decoding away from a reinforced model, against the formula on logits of two separate models."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

import unlearn.passes.generate as generation
from tests.unlearn.interventions.edits import END, PROMPTS, TOKENS, answers, batch, uncached
from unlearn import interventions
from unlearn.errors import UserError
from unlearn.interventions.contrast import contrasted
from unlearn.passes.forward import answer_logits
from unlearn.passes.prompt_layout import all_prompt, laid_out

Build = Callable[[str], PreTrainedModel]
ALPHA = 3.0


def reinforced(build: Build, family: str) -> PreTrainedModel:
    """Weights that differ from the model's by more than their own size."""
    model = build(family)
    draws = torch.Generator().manual_seed(5)
    for parameter in model.parameters():
        parameter.data += 0.6 * torch.randn(parameter.shape, generator=draws)
    return model


def contrasting(build: Build, family: str) -> PreTrainedModel:
    model = build(family)
    made = interventions.make(
        {"name": "contrast", "alpha": ALPHA}, hidden_size=32, layers=2, reinforced=reinforced(build, family)
    )
    made.attach(model)
    return model


def formula(base: Tensor, other: Tensor) -> Tensor:
    return torch.where(other > base, base - ALPHA * (other - base), base)


def test_formula_by_hand() -> None:
    # 1 − 0.5·(3 − 1) = 0; the second is left, since the reinforced model has it lower
    found = contrasted(torch.tensor([1.0, 2.0]), torch.tensor([3.0, 1.0]), 0.5)
    assert found.tolist() == [0.0, 2.0]


def test_full_logits_and_those_of_a_likelihood_pass(family: str, tiny_model: Build) -> None:
    base, other, model = tiny_model(family), reinforced(tiny_model, family), contrasting(tiny_model, family)
    data = batch()
    with torch.no_grad():
        expected = formula(*(answer_logits(each, data) for each in (base, other)))
        assert torch.equal(answer_logits(model, data), expected)
        ids = data.input_ids
        whole = formula(*(each(input_ids=ids, use_cache=False).logits for each in (base, other)))
        with laid_out(all_prompt(ids)):
            assert torch.equal(model(input_ids=ids, use_cache=False).logits, whole)
    assert (expected != answer_logits(base, data)).any()


def two_models(base: PreTrainedModel, other: PreTrainedModel, prompt: list[int]) -> list[int]:
    """Greedy decoding on the combined logits of whole forwards."""
    new: list[int] = []
    while len(new) < TOKENS:
        ids = torch.tensor([[*prompt, *new]])
        with torch.no_grad():
            logits = formula(*(each(input_ids=ids, use_cache=False).logits[0, -1] for each in (base, other)))
        token = int(logits.argmax())
        if token == END:
            break
        new.append(token)
    return new


def test_generation_is_step_by_step_decoding(
    family: str, tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, other, model = tiny_model(family), reinforced(tiny_model, family), contrasting(tiny_model, family)
    monkeypatch.setattr(generation, "_FIRST_ROUND", 2)  # several rounds
    expected = [two_models(base, other, prompt) for prompt in PROMPTS]
    assert answers(model, PROMPTS, 4) == expected
    assert answers(model, PROMPTS, 1) == expected
    assert [uncached(model, prompt) for prompt in PROMPTS] == expected
    if family != "gemma2":  # its capped logits keep repeating the prompt's last token
        assert answers(base, PROMPTS, 4) != expected


def test_caches_end_with_the_generation(tiny_model: Build) -> None:
    model: Any = contrasting(tiny_model, "llama")
    answers(model, PROMPTS, 4)
    assert len(model.interventions[0]._caches) == 0


def test_a_cache_filled_without_it_is_refused(tiny_model: Build) -> None:
    model: Any = tiny_model("llama")
    ids = torch.tensor([[1, 2, 3]])
    cache = model(input_ids=ids, use_cache=True).past_key_values
    contrast = interventions.make(
        {"name": "contrast"}, hidden_size=32, layers=2, reinforced=tiny_model("llama")
    )
    contrast.attach(model)
    with laid_out(all_prompt(ids)), pytest.raises(RuntimeError, match="filled without it"):
        model(input_ids=ids[:, :1], past_key_values=cache, use_cache=True)


def test_saved_and_loaded(family: str, tiny_model: Build, tmp_path: Path) -> None:
    model = contrasting(tiny_model, family)
    expected = answer_logits(model, batch())
    interventions.save(model, tmp_path)
    assert {file.suffix for file in (tmp_path / "reinforced").iterdir()} <= {".json", ".safetensors"}
    again = tiny_model(family)
    interventions.load(again, tmp_path)
    assert torch.equal(answer_logits(again, batch()), expected)


def test_saved_from_a_whole_state_dict(tiny_model: Build, tmp_path: Path) -> None:
    model = contrasting(tiny_model, "qwen2")  # tied
    expected = answer_logits(model, batch())
    own, other = interventions.split({name: t.clone() for name, t in model.state_dict().items()})
    assert own.keys() == tiny_model("qwen2").state_dict().keys()
    interventions.save(model, tmp_path, other)
    again = tiny_model("qwen2")
    interventions.load(again, tmp_path)
    assert torch.equal(answer_logits(again, batch()), expected)


def test_code_of_a_reinforced_model_is_not_run_and_nobody_is_asked(
    tmp_path: Path, tiny_model: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    interventions.save(contrasting(tiny_model, "llama"), tmp_path)
    own = {"model_type": "own", "auto_map": {"AutoConfig": "own.OwnConfig"}}
    (tmp_path / "reinforced" / "config.json").write_text(json.dumps(own))
    ran = tmp_path / "ran"
    (tmp_path / "reinforced" / "own.py").write_text(f"open({str(ran)!r}, 'w')\n")
    asked: list[str] = []

    def yes(prompt: str = "") -> str:
        asked.append(prompt)
        return "y"

    monkeypatch.setattr("builtins.input", yes)
    with pytest.raises(UserError, match="cannot be attached"):
        interventions.load(tiny_model("llama"), tmp_path)
    assert not asked
    assert not ran.exists()


def test_reinforced_model_stays_frozen_and_in_evaluation_mode(tiny_model: Build) -> None:
    model: Any = contrasting(tiny_model, "llama")
    inner = model.interventions[0].reinforced
    model.train()
    assert model.training
    assert not any(module.training for module in inner.modules())
    assert not any(p.requires_grad for p in inner.parameters())
    assert all(p.requires_grad for n, p in model.named_parameters() if not n.startswith("interventions."))
    assert interventions.blocks(model) is model.model.layers


def test_another_vocabulary_is_refused(tiny_model: Build) -> None:
    model = tiny_model("llama")
    other: Any = tiny_model("llama")
    other.resize_token_embeddings(90)
    contrast = interventions.make({"name": "contrast"}, hidden_size=32, layers=2, reinforced=other)
    with pytest.raises(UserError, match="has 90 tokens, the model 97"):
        contrast.attach(model)
