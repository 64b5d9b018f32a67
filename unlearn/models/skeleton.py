"""A model without its weights: configuration, names and shapes, limits of tokens and positions."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import Tensor, nn

from unlearn.config import ModelConfig, RunConfig
from unlearn.data.tokenization import Limits
from unlearn.errors import did_you_mean
from unlearn.models import hub, model_files, nano
from unlearn.models.locate import CheckpointSource, ModelError, find, resolve

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

_ATTENTION = ("eager", "sdpa")  # every release of transformers has them
_OFFSET = 16  # at most so many extra rows in a table of positions (OPT: 2)


def attention_problem(name: str) -> str | None:
    """Return what is wrong with `model.attention`; None: it is known, or a kernel from the hub."""
    if name in _ATTENTION or "/" in name:
        return None
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    known = ["eager", *(key for key in ALL_ATTENTION_FUNCTIONS.valid_keys() if "|" not in key)]
    if name in known:
        return None
    return f"model.attention={name}: transformers has no such attention{did_you_mean(name, known)}"


def read_config(
    cfg: ModelConfig, source: str | None = None, *, local_files_only: bool = False
) -> PreTrainedConfig:
    """Read the configuration of the model, of an adapter that of its base.

    Raises:
        ModelError: it cannot be read, or does not describe a causal language model.
    """
    checkpoint = resolve(cfg, source, local_files_only=local_files_only)
    if checkpoint is None:
        return nano.config(cfg.nano)
    with checkpoint.explained():
        config = transformers.AutoConfig.from_pretrained(
            checkpoint.name, **checkpoint.options, local_files_only=local_files_only or hub.local_only()
        )
    if checkpoint.package is None:
        _check_config(checkpoint, config)
    return config


def skeleton(
    cfg: ModelConfig, source: str | None = None, *, local_files_only: bool = False
) -> PreTrainedModel:
    """Build the model on the meta device: all modules and shapes, no weights.

    Raises:
        ModelError: it cannot be built as configured.
    """
    config = read_config(cfg, source, local_files_only=local_files_only)
    checkpoint = find(cfg, source)
    try:
        with torch.device("meta"):
            model = transformers.AutoModelForCausalLM.from_config(
                config, attn_implementation=cfg.attention, trust_remote_code=cfg.trust_remote_code
            )
    except Exception as error:  # model code may raise anything
        label = "model.nano" if checkpoint is None else checkpoint.label
        reason = " ".join(str(error).split()) or type(error).__name__
        cause = "" if cfg.attention in _ATTENTION else f" with model.attention={cfg.attention}"
        raise ModelError(
            f"{label}: the model cannot be built as config.json describes it{cause}: {reason}"
            + ("; try another model.attention (eager, sdpa)" if _is_attention(cfg, error) else "")
        ) from error
    assert isinstance(model, transformers.PreTrainedModel)
    return model


def is_plain_nano(config: RunConfig) -> bool:
    """Return whether a run's model is a nano one without adapters, edits or frozen parameters.

    Its sizes follow from `model.nano`, so that it need not be built, which imports transformers' models.
    """
    cfg, method = config.model, config.method
    changed = cfg.lora.r or method.train is not None or method.intervention is not None
    return cfg.kind == "nano" and cfg.attention in _ATTENTION and not changed


def check_weights(model: PreTrainedModel, checkpoint: CheckpointSource) -> list[str]:
    """Compare the headers of a folder's weights with the model that config.json describes.

    Returns:
        Warnings about tensors that the model does not use.

    Raises:
        ModelError: tensors are missing, have other shapes, or belong to layers that the model does not have.
    """
    folder = checkpoint.folder
    if folder is None:
        return []
    try:
        stored = model_files.shapes(folder)
    except model_files.Broken as error:
        raise ModelError(f"{checkpoint.label}: {error}") from error
    tensors = {name: torch.empty(shape, device="meta") for name, shape in stored.items()}
    kind: Any = type(model)
    with checkpoint.explained():
        _, report = kind.from_pretrained(
            None, config=model.config, state_dict=tensors, device_map={"": "meta"},
            ignore_mismatched_sizes=True, output_loading_info=True,
        )  # fmt: skip
    return _check_report(checkpoint, model, report)


def limits(cfg: ModelConfig, source: str | None = None) -> Limits:
    """Return how many tokens the model has embeddings for, and how many learned positions.

    Raises:
        ModelError: the configuration cannot be read.
    """
    checkpoint = find(cfg, source)
    if checkpoint is not None and checkpoint.package is not None:
        return Limits()  # one file holds tokenizer and weights: they match
    try:
        return limits_of(skeleton(cfg, source))
    except ModelError:
        if not cfg.trust_remote_code:  # remote code may need the weights
            raise
        return Limits()


def limits_of(model: PreTrainedModel) -> Limits:
    """Return the limits of a model; it may be on the meta device."""
    text: Any = model.config.get_text_config(decoder=True)
    embedding: Any = model.get_input_embeddings()
    rows = getattr(getattr(embedding, "weight", None), "shape", (text.vocab_size,))[0]
    limit = positions(model.config)
    return Limits(int(rows), limit if limit is not None and _has_table(model, limit) else None)


def positions(config: PreTrainedConfig) -> int | None:
    """Return the number of positions that a configuration names; None where it names none."""
    limit = getattr(config.get_text_config(decoder=True), "max_position_embeddings", None)
    return limit if isinstance(limit, int) and limit > 0 else None


def _has_table(model: nn.Module, limit: int) -> bool:
    """Whether position embeddings are rows of a parameter or a buffer."""
    tensors: Mapping[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    return any(
        tensor.ndim == 2 and limit <= tensor.shape[0] <= limit + _OFFSET and re.search(r"wpe|pos", name)
        for name, tensor in tensors.items()
    )


def _check_config(checkpoint: CheckpointSource, config: PreTrainedConfig) -> None:
    """Check the configuration with the defaults of its family, which config.json alone does not show.

    Raises:
        ModelError: it does not describe a causal language model, or its padding token has no embedding.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    problem = None
    text: Any = config.get_text_config(decoder=True)
    pad, rows = getattr(text, "pad_token_id", None), getattr(text, "vocab_size", None)
    if getattr(config, "is_encoder_decoder", False):
        problem = f"model_type {config.model_type} is an encoder-decoder, not a causal language model"
    elif getattr(text, "is_decoder", None) is False and text.model_type in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        problem = (
            f"model_type {config.model_type} is a masked language model, which attends to later tokens "
            "(is_decoder is false in config.json): choose a causal language model"
        )
    elif isinstance(pad, int) and isinstance(rows, int) and not -rows <= pad < rows:
        problem = (
            f"config.json has pad_token_id={pad}, but embeddings for vocab_size={rows} tokens only: set "
            "pad_token_id to null or to the end token's id"
        )
    if problem is not None:
        raise ModelError(f"{checkpoint.label}: {problem}")


def _check_report(
    checkpoint: CheckpointSource, model: PreTrainedModel, report: Mapping[str, Any]
) -> list[str]:
    """Return warnings of a loading report; raise ModelError where weights and configuration do not match."""
    mismatched = sorted(report["mismatched_keys"])
    if mismatched:
        name, stored, expected = mismatched[0]
        raise ModelError(
            f"{checkpoint.label}: {name} has shape {list(stored)} in the weights and {list(expected)} in "
            f"config.json ({len(mismatched)} differ in all): config.json and weights are of two models; copy "
            "both from the same one"
        )
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{checkpoint.label} has no weights for {', '.join(missing[:3])} ({len(missing)} in all): "
            "config.json and weights are of two models, or a file of weights is missing"
        )
    known = {re.sub(r"\d+", "#", name) for name, _ in model.named_parameters(remove_duplicate=False)}
    extra = sorted(report["unexpected_keys"])
    if layers := [name for name in extra if re.sub(r"\d+", "#", name) in known]:
        raise ModelError(
            f"{checkpoint.label}: the weights hold {layers[0]} ({len(layers)} such tensors), a layer that "
            "config.json leaves out: correct num_hidden_layers in config.json, or copy both from one model"
        )
    if not extra:
        return []
    return [f"{checkpoint.label}: {len(extra)} tensors of the weights are not used, such as {extra[0]}"]


def _is_attention(cfg: ModelConfig, error: Exception) -> bool:
    """Whether an error while building may come from the attention implementation."""
    return cfg.attention != "eager" and isinstance(error, ValueError | ImportError)
