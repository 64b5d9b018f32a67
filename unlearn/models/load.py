"""Load and identify a model; build it without its weights."""

from __future__ import annotations

import unlearn.environment  # noqa: F401 (before what imports DeepSpeed)

# isort: split
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from torch import nn

from unlearn import interventions
from unlearn.config import MethodConfig, ModelConfig
from unlearn.errors import ConfigError, UserError
from unlearn.models import adapt, adapter_targets, hub, nano, stored
from unlearn.models.fingerprint import fingerprint
from unlearn.models.locate import ModelError, find, named_base, resolve
from unlearn.models.skeleton import read_config, skeleton
from unlearn.plugins import named_by_data
from unlearn.terms import Term

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


def load_model(cfg: ModelConfig, source: str | None = None, *, seed: int = 0) -> PreTrainedModel:
    """Load the causal model in fp32 on the CPU, with its adapter merged and every dropout set to 0.

    `source` (a folder or hub id: a finished run's model, a published checkpoint) replaces `cfg.path`.
    `seed` draws the fresh weights of a nano model and is unused otherwise. Parameters that are stored in fp32
    are views of the mapped files.

    Without dropout the objectives are functions of the weights and the data alone: the same under any split
    into micro-batches and processes, and comparable with a reference computed in evaluation mode.

    Raises:
        ModelError: the checkpoint cannot be loaded or lacks weights of the model.
    """
    model = read_model(cfg, torch.float32, source, seed=seed)
    loaded: PreTrainedModel = in_precision(model, torch.device("cpu"), torch.float32)
    return loaded


def read_model(
    cfg: ModelConfig, dtype: torch.dtype, source: str | None = None, *, seed: int = 0
) -> PreTrainedModel:
    """Do what `load_model` does, with the parameters as they are stored: mapped, without memory of their own.

    All processes of a machine share the pages of a mapped file, which the system reads when they are used and
    may drop again. Converted to `dtype`, the compute precision, the parameters equal those of `load_model`
    bit for bit. Read whole, in fp32, are GGUF files, models with an adapter to merge, and tensors that
    transformers makes of several stored ones; in `dtype` those of a model stored in more than one precision.

    Raises:
        ModelError: as for `load_model`.
    """
    checkpoint = resolve(cfg, source)
    if checkpoint is None:
        return nano.model(cfg.nano, seed=seed, attention=cfg.attention)
    with checkpoint.explained(), checkpoint.quiet():
        config = read_config(cfg, source)
        _without_dropout(config)
        mapped = None if checkpoint.package or checkpoint.adapter else stored.precision(checkpoint, dtype)
        if mapped is None:
            log.debug("%s is read whole by each process", checkpoint.label)
        loaded: Any = transformers.AutoModelForCausalLM.from_pretrained(
            checkpoint.name,
            config=config,
            dtype=mapped or torch.float32,
            attn_implementation=cfg.attention,
            output_loading_info=True,
            local_files_only=hub.local_only(),
            **checkpoint.options,
            **({"use_safetensors": True} if checkpoint.package is None else _dequantised()),
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{checkpoint.label} has no weights for {', '.join(missing[:3])} ({len(missing)} in all)"
        )
    if getattr(model, "hf_quantizer", None) is not None:  # a saved copy must not be marked as GGUF
        model.hf_quantizer.remove_quantization_config(model)
    if checkpoint.adapter is not None:
        model = adapt.merge_saved(model, checkpoint.adapter)
    assert isinstance(model, transformers.PreTrainedModel)
    if adapter_targets.has_own_head(model):
        model.config = adapter_targets.untied(model.config)
        model.all_tied_weights_keys = {}
    stored.widen_buffers(model)
    if (folder := Path(checkpoint.name)).is_dir():
        with contextlib.nullcontext() if cfg.trust_remote_code else named_by_data():
            interventions.load(model, folder)
    return model


def in_precision(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """Move the model to a device, with its parameters in compute precision, as an engine does.

    One parameter at a time, so that of a mapped model no copy is made in the host's memory on the way.
    Buffers stay as they are: rotary frequencies in bf16 would turn far positions by the wrong angle.
    """
    if device.type == "cpu":  # moving a tensor to `cpu:0` copies it
        device = torch.device("cpu")
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(device, dtype)
    return model.to(device=device)


def depth(cfg: ModelConfig, source: str | None = None) -> int | None:
    """Return the number of layers; None where the configuration is not on this machine."""
    try:
        checkpoint = find(cfg, source)
        if checkpoint is None:
            return cfg.nano.layers
        with checkpoint.quiet():
            config = read_config(cfg, source, local_files_only=True)
    except UserError:
        return None
    return int(config.get_text_config(decoder=True).num_hidden_layers)


def resolve_layers(terms: Sequence[Term], cfg: ModelConfig, source: str | None = None) -> list[Term]:
    """Return the terms with layers as numbers: 1 is the first layer; 1.0, a fraction of the depth, the last.

    Raises:
        ConfigError: a term names a layer that the model does not have.
    """
    if all(term.layer is None for term in terms):
        return list(terms)
    layers = depth(cfg, source)
    problems = [
        f"method.{term.name}.layer={term.layer}: the model has {layers} layers; name one of them, or a "
        "fraction of its depth"
        for term in terms
        if layers is not None and term.layer is not None and term.layer > layers
    ]
    if problems:
        raise ConfigError(problems)
    return [
        term if term.layer is None else replace(term, layer=_layer_number(term.layer, layers))
        for term in terms
    ]


def _layer_number(layer: float, layers: int | None) -> int:
    if isinstance(layer, int) or layers is None:
        return int(layer)
    return max(1, round(layer * layers)) if 0 < layer <= 1 else int(layer)


def identity(cfg: ModelConfig, source: str | None = None) -> dict[str, Any]:
    """Return what identifies these weights, without loading them: JSON without any path."""
    checkpoint = find(cfg, source)
    if checkpoint is None:
        return {"nano": cfg.nano.model_dump()}
    marks = fingerprint(checkpoint)
    unread = checkpoint.folder is None and checkpoint.adapter is None  # of the hub: perhaps an adapter
    if unread and (base := named_base(cfg)) is not None:
        marks["base"] = fingerprint(base)
    return marks


def trainable_skeleton(cfg: ModelConfig, method: MethodConfig) -> nn.Module | None:
    """Build the skeleton of the model as training has it: with edits, adapters and frozen parameters; None
    where its configuration is not on this machine.

    Raises:
        UserError: `model.lora` or `method.train` does not match the model.
    """
    checkpoint = find(cfg, None)
    try:
        with contextlib.nullcontext() if checkpoint is None else checkpoint.quiet():
            model: Any = skeleton(cfg, local_files_only=True)
    except (UserError, OSError, ValueError, ImportError):
        return None
    with torch.device("meta"):
        if method.intervention is not None and method.terms:
            text = model.config.get_text_config(decoder=True)
            interventions.make(
                method.intervention, hidden_size=text.hidden_size, layers=text.num_hidden_layers
            ).attach(model)
        if cfg.lora.r:
            model = adapt.add_lora(model, cfg.lora, 0)
    if method.train is not None:
        adapt.train_only(model, method.train)
    return model


def _dequantised() -> dict[str, Any]:
    """Return the options of `from_pretrained` that unpack GGUF weights: newer releases may keep them packed,
    and packed weights cannot be trained."""
    if not hasattr(transformers, "GgufConfig"):
        return {}
    return {"quantization_config": transformers.GgufConfig(dequantize=True)}


_DROPOUT = ("dropout", "dropout_prob", "pdrop", "layerdrop")


def _without_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout rate (`resid_pdrop`, `layerdrop` …) and noise of routers (`router_jitter_noise`) to
    0, also in nested configurations."""
    for name, value in vars(config).items():
        if isinstance(value, transformers.PreTrainedConfig):
            _without_dropout(value)
        elif isinstance(value, float) and (name.endswith(_DROPOUT) or "jitter" in name):
            setattr(config, name, 0.0)
