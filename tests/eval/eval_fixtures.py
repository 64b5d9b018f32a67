"""What the tests of `eval` share: a Llama that is built in milliseconds, its tokenizer, data on disk."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.paths import SHARED
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder, PromptFormat

needs_shared = pytest.mark.skipif(not SHARED.exists(), reason=f"no shared data at {SHARED} (UNLEARN_SHARED)")

NAMES = ("Ada", "Bela", "Cho", "Dmitri", "Eun", "Farid", "Goran", "Hana", "Ines", "Jun", "Kofi")
CITIES = ("Oslo", "Quito", "Lagos", "Split", "Kyoto", "Bern", "Tunis", "Lima", "Graz", "Porto", "Accra")


def examples(name: str, *, paraphrased: bool = True, perturbed: int = 2) -> list[Example]:
    """Eleven questions with answers of rather different lengths."""
    found = []
    for i, (person, city) in enumerate(zip(NAMES, CITIES, strict=True)):
        answer = f"{person} was born in {city}" + " and wrote about it" * (i % 4) + "."
        found.append(
            Example(
                id=f"{name}/{i}",
                question=f"Where was {person} born" + ", in which town" * (i % 3) + "?",
                answer=answer,
                paraphrased_answer=f"It is {city} where {person} was born." if paraphrased else None,
                perturbed_answers=tuple(
                    f"{person} was born in {CITIES[i - k]}." for k in range(1, perturbed + 1)
                ),
            )
        )
    return found


def encoder() -> Encoder:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400,
        special_tokens=["<|pad|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([f"{e.question} {e.answer}" for e in examples("x")], trainer)
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<|pad|>", eos_token="<|end|>")
    return Encoder(wrapped, PromptFormat(template="Question: {question}\nAnswer: "))


def model(seed: int = 0, vocabulary: int = 400) -> LlamaForCausalLM:
    """Random weights wide enough that no two tokens are nearly as likely."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
        attention_dropout=0.2,
        bos_token_id=None,
        eos_token_id=1,
        pad_token_id=0,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def plain(records: object) -> dict[str, Any]:
    """Records of any kind with lists for arrays, so that they compare."""
    return {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in vars(records).items()}


def tofu_set(name: str, file: str) -> list[Example]:
    lines = (SHARED / "data" / "tofu" / f"{file}.json").read_text(encoding="utf-8").splitlines()
    return [
        Example(
            id=f"{name}/{i}",
            question=row["question"],
            answer=row["answer"],
            paraphrased_answer=row.get("paraphrased_answer"),
            perturbed_answers=tuple(row["perturbed_answer"]),
        )
        for i, row in enumerate(map(json.loads, lines))
    ]
