"""Load the tokenizer of a model, and make the encoder of its prompt format."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import transformers
from transformers.utils import cached_file

from unlearn.config import ModelConfig
from unlearn.data.tokenization import Encoder, Limits, PromptFormat
from unlearn.models import hub, nano
from unlearn.models.locate import CheckpointSource, ModelError, resolve
from unlearn.models.model_files import tokenizer_problem
from unlearn.models.skeleton import read_config

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def load_tokenizer(cfg: ModelConfig, source: str | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of `source`, or that of `cfg` where a published checkpoint has none.

    The tokenizer of an adapter is its own, or where it has none that of its base.

    Raises:
        ModelError: it cannot be loaded, has no tokens, or gives no character offsets.
    """
    checkpoint = resolve(cfg, source)
    if checkpoint is None:
        return nano.tokenizer(cfg.nano.vocabulary)
    model = {}
    if checkpoint.adapter is not None and _has_tokenizer(checkpoint.adapter):
        # Transformers looks at the model's configuration too, which an adapter does not have.
        model["config"] = read_config(cfg, source)
        checkpoint = checkpoint.adapter
    elif source is not None and not _has_tokenizer(checkpoint):
        return load_tokenizer(cfg)
    with checkpoint.explained(), checkpoint.quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            checkpoint.name, local_files_only=hub.local_only(), **checkpoint.options, **model
        )
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
    cfg: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    limits: Limits | None = None,
) -> Encoder:
    """Return the encoder of a model with these `limits` (None: unknown).

    No sequence is longer than the model's positions.
    """
    limits = limits or Limits()
    longest = max_length if limits.positions is None else min(max_length, limits.positions)
    return Encoder(tokenizer, prompt_format(cfg), longest, limits)


def _without_random_merges(tokenizer: Any, checkpoint: CheckpointSource) -> None:
    """Turn off BPE dropout, with which a tokenizer gives other tokens each time."""
    if getattr(tokenizer.backend_tokenizer.model, "dropout", None):
        tokenizer.backend_tokenizer.model.dropout = None
        log.info("%s: turned off the tokenizer's random dropping of merges (dropout)", checkpoint.label)


def _has_tokenizer(checkpoint: CheckpointSource) -> bool:
    with checkpoint.explained():
        file = cached_file(
            checkpoint.name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False,
            **checkpoint.file_options,
        )  # fmt: skip
    return file is not None
