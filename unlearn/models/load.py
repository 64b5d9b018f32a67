"""Load, identify, adapt and save the model and its tokenizer."""

from __future__ import annotations

import unlearn.environment  # noqa: F401 (before what imports DeepSpeed)

# isort: split
import contextlib
import fnmatch
import io
import logging as python_logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import huggingface_hub
import torch
import transformers
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import cached_file, logging

from unlearn import interventions
from unlearn.config import LoraConfig, MethodConfig, ModelConfig
from unlearn.data.tokenization import Encoder, Limits, PromptFormat
from unlearn.errors import ConfigError, UserError
from unlearn.files import replacing
from unlearn.models import nano
from unlearn.models.adapter_targets import untied, unties
from unlearn.models.locate import CheckpointSource, ModelError, find, fingerprint
from unlearn.models.model_files import tokenizer_problem
from unlearn.models.skeleton import read_config, skeleton
from unlearn.terms import Term

if TYPE_CHECKING:
    from peft import PeftModel

log = python_logging.getLogger(__name__)

if "TRANSFORMERS_VERBOSITY" not in os.environ:
    logging.set_verbosity_error()  # the one warning that matters, missing weights, is an error here
_downloads_shown = not huggingface_hub.utils.are_progress_bars_disabled()
logging.disable_progress_bar()
if _downloads_shown:  # downloads take long enough for a progress bar
    huggingface_hub.utils.enable_progress_bars()
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing`", category=FutureWarning)  # of PEFT
warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")  # of PEFT; see adapters.py

# Newer releases of transformers may otherwise keep GGUF weights packed, which nothing can train.
_DEQUANTISED: dict[str, Any] = (
    {"quantization_config": transformers.GgufConfig(dequantize=True)}
    if hasattr(transformers, "GgufConfig")
    else {}
)


def load_model(cfg: ModelConfig, source: str | None = None, *, seed: int = 0) -> PreTrainedModel:
    """Load the causal model in fp32 on the CPU, with every dropout set to 0.

    `source` (a folder or hub id: a finished run's model, a published checkpoint) replaces `cfg.path`.
    `seed` draws the fresh weights of a nano model and is unused otherwise.

    Without dropout the objectives are functions of the weights and the data alone: the same under any split
    into micro-batches and processes, and comparable with a reference computed in evaluation mode.

    Raises:
        ModelError: the checkpoint cannot be loaded or lacks weights of the model.
    """
    checkpoint = find(cfg, source)
    if checkpoint is None:
        return nano.model(cfg.nano, seed=seed, attention=cfg.attention)
    with checkpoint.explained(), _quiet(checkpoint):
        config = read_config(cfg, source)
        _without_dropout(config)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            checkpoint.name,
            config=config,
            dtype=torch.float32,
            attn_implementation=cfg.attention,
            output_loading_info=True,
            **checkpoint.options,
            **({"use_safetensors": True} if checkpoint.package is None else _DEQUANTISED),
        )
    model, report = loaded
    if missing := sorted(report["missing_keys"]):
        raise ModelError(
            f"{checkpoint.label} has no weights for {', '.join(missing[:3])} ({len(missing)} in all)"
        )
    if getattr(model, "hf_quantizer", None) is not None:  # a saved copy must not be marked as GGUF
        model.hf_quantizer.remove_quantization_config(model)
    assert isinstance(model, PreTrainedModel)
    if (folder := Path(checkpoint.name)).is_dir():
        interventions.load(model, folder)
    return model


def in_precision(model: nn.Module, device: torch.device, dtype: torch.dtype) -> Any:
    """Move the model to a device, with its parameters in compute precision, as an engine does.

    Buffers stay as they are: rotary frequencies in bf16 would turn far positions by the wrong angle.
    """
    for parameter in model.parameters():
        if parameter.is_floating_point():
            parameter.data = parameter.data.to(dtype)
    return model.to(device=device)


def depth(cfg: ModelConfig, source: str | None = None) -> int | None:
    """Return the number of layers; None where the configuration is not on this machine."""
    try:
        checkpoint = find(cfg, source)
        if checkpoint is None:
            return cfg.nano.layers
        with _quiet(checkpoint):
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


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters but those whose name matches one of the patterns (`*.mlp.down_proj.weight`).

    Raises:
        UserError: a pattern matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"method.train={pattern}: no parameter of the model has such a name (example: {names[-2]})"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatch(name, pattern) for pattern in patterns))


def extrapolated(
    start: Mapping[str, Tensor], learned: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Return start + scale·(learned − start) for each floating tensor; a negative scale negates what was
    learned (task arithmetic, arXiv 2212.04089)."""
    return {
        name: tensor + (start[name].to(tensor.dtype) - tensor) * (1 - scale)
        if tensor.is_floating_point() and name in start
        else tensor
        for name, tensor in learned.items()
    }


def load_tokenizer(cfg: ModelConfig, source: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `source`, or that of `cfg` where a published checkpoint has none.

    Raises:
        ModelError: it cannot be loaded, has no tokens, or gives no character offsets.
    """
    checkpoint = find(cfg, source)
    if checkpoint is not None and source is not None and not _has_tokenizer(checkpoint):
        checkpoint = find(cfg, None)
    if checkpoint is None:
        return nano.tokenizer(cfg.nano.vocabulary)
    with checkpoint.explained(), _quiet(checkpoint):
        tokenizer = AutoTokenizer.from_pretrained(checkpoint.name, **checkpoint.options)
    if not tokenizer("a", add_special_tokens=False)["input_ids"]:
        cause = None if checkpoint.folder is None else tokenizer_problem(checkpoint.folder)
        raise ModelError(
            f"{checkpoint.label}: {cause or 'its tokenizer has no tokens, so its files are incomplete'}"
        )
    if not tokenizer.is_fast:
        raise ModelError(
            f"{checkpoint.label} has a tokenizer without character offsets, which locate the start of an "
            "answer: convert it to a tokenizer.json (transformers' fast format)"
        )
    _without_random_merges(tokenizer, checkpoint)
    return tokenizer


def prompt_format(cfg: ModelConfig) -> PromptFormat:
    """Return the prompt format that `model.prompt` describes."""
    return PromptFormat(**cfg.prompt.model_dump())


def make_encoder(
    cfg: ModelConfig, tokenizer: PreTrainedTokenizerBase, max_length: int, limits: Limits | None = None
) -> Encoder:
    """Return the encoder of a model with these `limits` (None: unknown).

    No sequence is longer than the model's positions.
    """
    limits = limits or Limits()
    longest = max_length if limits.positions is None else min(max_length, limits.positions)
    return Encoder(tokenizer, prompt_format(cfg), longest, limits)


def identity(cfg: ModelConfig, source: str | None = None) -> dict[str, Any]:
    """Return what identifies these weights, without loading them: JSON without any path."""
    checkpoint = find(cfg, source)
    return {"nano": cfg.nano.model_dump()} if checkpoint is None else fingerprint(checkpoint)


def blueprint(cfg: ModelConfig, method: MethodConfig) -> nn.Module | None:
    """Build the model without its weights (on the meta device), with the edits, adapters and frozen
    parameters that training has; None where its configuration is not on this machine.

    Raises:
        UserError: `model.lora` or `method.train` does not match the model.
    """
    checkpoint = find(cfg, None)
    try:
        with contextlib.nullcontext() if checkpoint is None else _quiet(checkpoint):
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
            model = add_lora(model, cfg.lora, 0)
    if method.train is not None:
        train_only(model, method.train)
    return model


def add_lora(model: PreTrainedModel, cfg: LoraConfig, seed: int) -> PeftModel:
    """Freeze the model and add adapters, which start as zero and are the only parameters that train."""
    from peft import LoraConfig as PeftLoraConfig  # a second of imports, for adapters alone
    from peft import PeftModel, get_peft_model

    config = PeftLoraConfig(
        r=cfg.r,
        lora_alpha=cfg.alpha,
        target_modules=cfg.targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        with nano.seeded(seed):
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora: {' '.join(str(error).split())}") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Merge the adapters into the weights and return the plain model; the adapted model is consumed."""
    merged = model.merge_and_unload()
    assert isinstance(merged, PreTrainedModel)
    return merged


def exportable(model: PreTrainedModel | PeftModel, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a plain model that holds `weights`, a full state dict of `model`, with adapters merged.

    Meant for a model whose own weights are sharded or still needed: only its architecture is used. The
    tensors of `weights` become the new model's. Where adapters are on one of two tied weights, the two are
    no longer equal, and the plain model has both.
    """
    from peft import PeftModel, get_peft_model

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = untied(base.config) if unties(model) else base.config
    with torch.device("meta"):
        plain = type(base)(config)
        shell: Any = plain
        if isinstance(model, PeftModel):
            shell = get_peft_model(plain, model.active_peft_config)
    shell.load_state_dict(weights, assign=True)
    plain.tie_weights()  # assigning tensors one by one has untied them
    plain.generation_config = base.generation_config
    return merge_lora(shell) if isinstance(shell, PeftModel) else plain


def save_pretrained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path, *,
    write_extra: Callable[[Path], None] = lambda _: None,
) -> None:  # fmt: skip
    """Save model and tokenizer as a plain Hugging Face folder with safetensors weights, atomically.

    `write_extra` writes further files into the folder.
    """
    with replacing(Path(directory)) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_extra(part)


def _without_dropout(config: PreTrainedConfig) -> None:
    """Set every dropout rate to 0, also in nested configurations (`resid_pdrop`, `layerdrop` …)."""
    for name, value in vars(config).items():
        if isinstance(value, PreTrainedConfig):
            _without_dropout(value)
        elif name.endswith(("dropout", "dropout_prob", "pdrop", "layerdrop")) and isinstance(value, float):
            setattr(config, name, 0.0)


def _without_random_merges(tokenizer: Any, checkpoint: CheckpointSource) -> None:
    """Turn off BPE dropout, with which a tokenizer gives other tokens each time."""
    if getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        tokenizer.backend_tokenizer.model.dropout = None
        log.info("%s: turned off the tokenizer's random dropping of merges (dropout)", checkpoint.label)


def _has_tokenizer(checkpoint: CheckpointSource) -> bool:
    options = {key: value for key, value in checkpoint.options.items() if key == "revision"}
    with checkpoint.explained():
        file = cached_file(
            checkpoint.name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **options
        )
    return file is not None


@contextlib.contextmanager
def _quiet(checkpoint: CheckpointSource) -> Iterator[None]:
    # The reader of GGUF files shows a progress bar that no setting turns off.
    hidden = contextlib.redirect_stderr(io.StringIO()) if checkpoint.package else contextlib.nullcontext()
    with hidden:
        yield
