"""A model without its weights: configuration, names and shapes, and what it can take."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

from unlearn.config import ModelConfig
from unlearn.data.tokenization import Limits
from unlearn.errors import did_you_mean
from unlearn.models import model_files, nano
from unlearn.models.locate import ModelError, Place, find

_OFFSET = 16  # rows that tables of positions have beside those of positions (OPT: 2)


def attention_problem(name: str) -> str | None:
    """Return what is wrong with `model.attention`; None: it is known, or a kernel of the hub."""
    known = ["eager", *(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in key)]
    if name in known or "/" in name:
        return None
    return f"model.attention={name}: transformers has no such attention{did_you_mean(name, known)}"


def read_config(cfg: ModelConfig, source: str | None = None, **options: Any) -> PreTrainedConfig:
    """Return the configuration of the model; `options` go to `from_pretrained`.

    Raises:
        ModelError: it cannot be had, or describes no causal language model.
    """
    place = find(cfg, source)
    if place is None:
        return nano.config(cfg.nano)
    with place.explained():
        config = AutoConfig.from_pretrained(place.name, **place.options, **options)
    if place.package is None:
        _refuse(place, config)
    return config


def skeleton(cfg: ModelConfig, source: str | None = None, **options: Any) -> PreTrainedModel:
    """Return the model on the meta device: all modules and shapes, no weights; `options` go to `read_config`.

    Raises:
        ModelError: it cannot be built as configured.
    """
    config, place = read_config(cfg, source, **options), find(cfg, source)
    try:
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(
                config, attn_implementation=cfg.attention, trust_remote_code=cfg.trust_remote_code
            )
    except Exception as error:  # whatever a family's code raises on what it is given
        label = "model.nano" if place is None else place.label
        said = " ".join(str(error).split()) or type(error).__name__
        cause = "" if cfg.attention in ("eager", "sdpa") else f" with model.attention={cfg.attention}"
        raise ModelError(
            f"{label}: the model cannot be built as config.json describes it{cause}: {said}"
            + ("; try another model.attention (eager, sdpa)" if _is_attention(cfg, error) else "")
        ) from error
    assert isinstance(model, PreTrainedModel)
    return model


def check_weights(model: PreTrainedModel, place: Place) -> list[str]:
    """Compare the headers of a folder's weights with the model that config.json describes.

    Returns:
        Warnings about tensors that the model has no use for.

    Raises:
        ModelError: tensors are missing or of other shapes, or are of layers that the model does not have.
    """
    folder = place.folder
    if folder is None:
        return []
    try:
        stored = model_files.shapes(folder)
    except model_files.Broken as error:
        raise ModelError(f"{place.label}: {error}") from error
    found = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    kind: Any = type(model)
    with place.explained():
        _, report = kind.from_pretrained(
            None, config=model.config, state_dict=found, device_map={"": "meta"},
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    return _judged(place, model, report)


def limits(cfg: ModelConfig, source: str | None = None) -> Limits:
    """Return how many tokens the model has embeddings for, and how many learned positions.

    Raises:
        ModelError: the configuration cannot be had.
    """
    place = find(cfg, source)
    if place is not None and place.package is not None:  # one file, which is of one piece
        return Limits()
    try:
        return limits_of(skeleton(cfg, source))
    except ModelError:
        if not cfg.trust_remote_code:  # such code may need the weights
            raise
        return Limits()


def limits_of(model: PreTrainedModel) -> Limits:
    """Return the limits of a model, of which the shapes are enough."""
    text: Any = model.config.get_text_config(decoder=True)
    embedding: Any = model.get_input_embeddings()
    rows = getattr(getattr(embedding, "weight", None), "shape", (text.vocab_size,))[0]
    most = positions(model.config)
    return Limits(int(rows), most if most is not None and _has_table(model, most) else None)


def positions(config: PreTrainedConfig) -> int | None:
    """Return how many positions a configuration names; None where it names none."""
    most = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return most if isinstance(most, int) and most > 0 else None


def _has_table(model: nn.Module, most: int) -> bool:
    """Whether positions are looked up in a table, as rows of a parameter or a buffer."""
    tensors: Mapping[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return any(
        tensor.ndim == 2 and most <= tensor.shape[0] <= most + _OFFSET and re.search(r"wpe|pos", name)
        for name, tensor in tensors.items()
    )


def _refuse(place: Place, config: PreTrainedConfig) -> None:
    """
    Raises:
        ModelError: what is not to be found in config.json alone, such as values that the family sets.
    """
    problem = None
    text: Any = config.get_text_config(decoder=True)
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if getattr(config, "is_encoder_decoder", False):
        problem = f"model_type {config.model_type} is an encoder with a decoder, no causal language model"
    elif getattr(text, "is_decoder", None) is False and text.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        problem = (
            f"model_type {config.model_type} is a masked language model, which sees the tokens to come "
            "(is_decoder is false in config.json): take a causal language model"
        )
    elif isinstance(pad, int) and isinstance(rows, int) and not -rows <= pad < rows:
        problem = (
            f"config.json has pad_token_id={pad} and embeddings for vocab_size={rows} tokens only: set it to "
            "null or to the end token's id"
        )
    if problem is not None:
        raise ModelError(f"{place.label}: {problem}")


def _judged(place: Place, model: PreTrainedModel, report: Mapping[str, Any]) -> list[str]:
    wrong = sorted(report["mismatched_keys"])
    if wrong:
        name, stored, expected = wrong[0]
        raise ModelError(
            f"{place.label}: {name} has shape {list(stored)} in the weights and {list(expected)} by "
            f"config.json ({len(wrong)} differ in all): config.json and weights are of two models; copy both "
            "from the same one"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{place.label} has no weights for {', '.join(missing[:3])} ({len(missing)} in all): config.json "
            "and weights are of two models, or a file of weights is missing"
        )
    known = {re.sub(r"\d+", "#", name) for name, _ in model.named_parameters(remove_duplicate=False)}
    extra = sorted(report["unexpected_keys"])
    if layers := [name for name in extra if re.sub(r"\d+", "#", name) in known]:
        raise ModelError(
            f"{place.label}: the weights hold {layers[0]} ({len(layers)} of its kind), a layer that "
            "config.json leaves out: correct num_hidden_layers in config.json, or copy both from one model"
        )
    if not extra:
        return []
    return [f"{place.label}: {len(extra)} tensors of the weights are not used, such as {extra[0]}"]


def _is_attention(cfg: ModelConfig, error: Exception) -> bool:
    """Whether an error while building is about the attention: with the plain one there is none."""
    return cfg.attention != "eager" and isinstance(error, ValueError | ImportError)
