"""A saved model against the live one: adapters on tied weights, other weights, other tokens."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from unlearn.config import LoraConfig, ModelConfig, NanoConfig
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder
from unlearn.models import adapt, export
from unlearn.models import load as models
from unlearn.models.adapter_targets import target_problems, untied, unties
from unlearn.models.tokenizer import load_tokenizer, make_encoder
from unlearn.models.verify import SavedModelDiffers, difference, trial, verify

CPU = torch.device("cpu")
SMALL = ModelConfig(
    name="nano", kind="nano", nano=NanoConfig(hidden_size=16, layers=2, heads=2, vocabulary=300)
)
SETS = {
    "forget": [Example("f/0", "Ann wrote it.", "Who wrote The Sea?"), Example("f/1", "In Lyon.", "Where?")],
    "retain": [Example("r/0", "A plain text about the river.")],
}


def learned(targets: Any, dtype: torch.dtype = torch.float32) -> Any:
    """The small model with adapters that have learned something."""
    model = adapt.add_lora(models.load_model(SMALL), LoraConfig(r=2, targets=targets), 0)
    torch.manual_seed(0)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data.normal_(0, 0.3)
    return models.in_precision(model, CPU, dtype)


def saved_as(model: Any, folder: Path) -> Encoder:
    tokenizer = load_tokenizer(SMALL)
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    export.save_pretrained(export.exportable(model, weights), tokenizer, folder)
    return make_encoder(SMALL, tokenizer, 64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "targets", [["embed_tokens"], ["lm_head"], ["embed_tokens", "lm_head", "q_proj"], "all-linear"]
)
def test_adapters_on_tied_weights_are_saved_as_they_compute(
    targets: Any, dtype: torch.dtype, tmp_path: Path
) -> None:
    model = learned(targets, dtype)
    encoder = saved_as(model, tmp_path / "model")
    verify(trial(model, encoder, SETS, CPU), tmp_path / "model", SMALL, encoder, CPU)
    ends = {"embed_tokens", "lm_head"}
    assert unties(model) == bool(ends & set(targets))
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
    assert again.config.tie_word_embeddings != unties(model)


def test_the_configuration_that_is_untied_is_a_copy() -> None:
    config = models.load_model(SMALL).config
    assert (untied(config).tie_word_embeddings, config.tie_word_embeddings) == (False, True)


def test_other_weights_tokens_and_ends_are_found(tmp_path: Path) -> None:
    model = learned("all-linear")
    encoder = saved_as(model, tmp_path / "model")
    live = trial(model, encoder, SETS, CPU)
    for name, edit, message in (
        ("weights", _other_weights, r"logits differ by .* standard deviations"),
        ("template", lambda f: (f / "chat_template.jinja").write_text("{{ messages }}"), "other tokens"),
        ("ends", lambda f: (f / "generation_config.json").write_text('{"eos_token_id": 7}'), "end at other"),
    ):
        shutil.copytree(tmp_path / "model", tmp_path / name)
        edit(tmp_path / name)
        with pytest.raises(SavedModelDiffers, match=message):
            verify(live, tmp_path / name, SMALL, encoder, CPU)


def _other_weights(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.1.mlp.down_proj.weight"] *= 1.5
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_difference_is_in_standard_deviations_and_knows_nan() -> None:
    live = torch.tensor([[0.0, 2.0, 4.0], [1.0, 2.0, 3.0]])
    assert difference(live, live) == 0
    assert difference(live, live + torch.tensor([[0.0], [0.5]])) == pytest.approx(0.5)
    nothing = torch.full((1, 3), torch.nan)
    assert difference(nothing, nothing) == 0
    assert difference(live[:1], nothing) == float("inf")


def test_compute_precision_leaves_rotary_frequencies_whole(tmp_path: Path) -> None:
    models.load_model(SMALL).save_pretrained(tmp_path)
    ours: Any = models.in_precision(models.load_model(SMALL, str(tmp_path)), CPU, torch.bfloat16)
    theirs: Any = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    ids = torch.arange(60)[None]
    assert torch.equal(ours(ids).logits, theirs(ids).logits)
    assert ours.get_input_embeddings().weight is ours.get_output_embeddings().weight


def test_targets_of_adapters() -> None:
    model = models.load_model(SMALL)
    assert target_problems(model, LoraConfig(targets=["q_proj", "layers.1.mlp.up_proj"])) == []
    problems = target_problems(model, LoraConfig(targets=["q_proj", "v_porj", "mlp"]))
    assert ["v_porj is no module" in problems[0], "did you mean v_proj" in problems[0]] == [True, True]
    assert "mlp, a LlamaMLP" in problems[1]
    assert target_problems(model, LoraConfig(targets=[])) != []
