"""A Llama of a million parameters and its tokenizer, both built here: no download, runs in seconds."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from unlearn.config import NanoConfig
from unlearn.data import synthetic_authors as authors
from unlearn.models.locate import ModelError

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

POSITIONS = 2048
PAD, END = "<|pad|>", "<|end|>"
_ROLES = ("<|system|>", "<|user|>", "<|assistant|>")
_CHAT = (
    "{% for message in messages %}<|{{ message.role }}|>{{ message.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
_SMALLEST = 2 + len(_ROLES) + 256  # the special tokens and one token for every byte


def model(shape: NanoConfig, *, seed: int, attention: str = "sdpa") -> LlamaForCausalLM:
    """Build the model with random fp32 weights and tied embeddings; the weights depend on the seed alone.

    Raises:
        ModelError: the width does not divide into the heads, or the vocabulary is too small.
    """
    with seeded(seed):
        built = transformers.AutoModelForCausalLM.from_config(config(shape), attn_implementation=attention)
    built.generation_config = transformers.GenerationConfig(pad_token_id=0, eos_token_id=1)
    return built


def check(shape: NanoConfig) -> None:
    """Check that a nano model can be built.

    Raises:
        ModelError: as for `model`.
    """
    if shape.hidden_size % (2 * shape.heads):
        raise ModelError(
            f"model.nano.hidden_size={shape.hidden_size} does not divide into "
            f"model.nano.heads={shape.heads} heads of even width: choose a multiple of {2 * shape.heads}"
        )
    _check_vocabulary(shape.vocabulary)


def inner_size(shape: NanoConfig) -> int:
    """Return the width of the MLP: about 8/3 of the model's, as in Llama."""
    return -(-shape.hidden_size // 3) * 8


def config(shape: NanoConfig) -> LlamaConfig:
    """Return the configuration of a nano model.

    Raises:
        ModelError: as for `model`.
    """
    check(shape)
    return transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden_size,
        intermediate_size=inner_size(shape),
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )


def tokenizer(vocabulary: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE tokenizer with a chat template on the package's synthetic authors."""
    _check_vocabulary(vocabulary)
    wrapped = transformers.PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(vocabulary)),
        pad_token=PAD,
        eos_token=END,
        extra_special_tokens=list(_ROLES),
    )
    wrapped.chat_template = _CHAT
    return wrapped


def _check_vocabulary(vocabulary: int) -> None:
    if vocabulary < _SMALLEST:
        raise ModelError(f"model.nano.vocabulary={vocabulary} is too small: {_SMALLEST} or more")


@cache
def _trained(vocabulary: int) -> str:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, END, *_ROLES],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    bpe.train_from_iterator(_texts(), trainer)
    return str(bpe.to_str())


def _texts() -> Iterator[str]:
    # More authors than any run uses, so that held-out ones do not take more tokens than the others.
    for group in (*authors.generate(200), authors.real_authors(), authors.world_facts()):
        for example in group:
            texts = (
                example.question,
                example.answer,
                example.paraphrased_question,
                example.paraphrased_answer,
                *example.perturbed_answers,
            )
            yield from (text for text in texts if text is not None)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the CPU's random generator, and restore its state afterwards."""
    state = torch.get_rng_state()
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        torch.set_rng_state(state)
