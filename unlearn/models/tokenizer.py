"""Load the tokenizer of a model, and make the encoder of its prompt format."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import transformers
from transformers.utils import cached_file

from unlearn.config import ModelConfig
from unlearn.data.tokenization import Encoder, Limits, PromptFormat
from unlearn.models import nano
from unlearn.models.locate import CheckpointSource, ModelError, find
from unlearn.models.model_files import tokenizer_problem

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

log = logging.getLogger(__name__)


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
    with checkpoint.explained(), checkpoint.quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(checkpoint.name, **checkpoint.options)
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
    options = {key: value for key, value in checkpoint.options.items() if key == "revision"}
    with checkpoint.explained():
        file = cached_file(
            checkpoint.name, "tokenizer_config.json", _raise_exceptions_for_missing_entries=False, **options
        )
    return file is not None
