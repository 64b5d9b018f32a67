"""Tiny models of every family and small tokenizers: real ones, built in milliseconds."""

from __future__ import annotations

import gc
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:  # the process that deals out the tests runs none: what takes seconds to import waits
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

settings.register_profile("shared", deadline=None)  # a first call may import much, and machines are shared
settings.load_profile("shared")
gc.set_threshold(100_000, 50, 100)  # tests make many short-lived objects
gc.disable()  # while tests are collected: what is imported stays

# Large initial weights, so that logits are far from uniform.
_SHAPE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 64,
    "initializer_range": 0.3,
}
_GATED: dict[str, Any] = {**_SHAPE, "intermediate_size": 48, "num_key_value_heads": 2}
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("LlamaConfig", _GATED),
    "mistral": ("MistralConfig", {**_GATED, "sliding_window": 4}),
    "qwen2": ("Qwen2Config", {**_GATED, "tie_word_embeddings": True}),
    "gemma": ("GemmaConfig", {**_GATED, "head_dim": 8}),
    "gemma2": (
        "Gemma2Config",
        {
            **_GATED, "head_dim": 8, "sliding_window": 4, "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 1.5,
        },
    ),
    "gpt_neox": ("GPTNeoXConfig", {**_SHAPE, "intermediate_size": 48}),
    "phi": ("PhiConfig", {**_SHAPE, "intermediate_size": 48}),
    "gpt2": ("GPT2Config", _SHAPE),
    "opt": ("OPTConfig", {**_SHAPE, "ffn_dim": 48, "word_embed_proj_dim": 32, "init_std": 0.3}),
}  # fmt: skip
"""Of each family the configuration's class in transformers, and its values."""

# The longest first, so that no worker is left alone with one of them at the end.
_FIRST = (
    "test_slurm.py", "test_launchers.py", "test_run.py", "test_install.py", "test_interruptions.py",
    "test_evaluation_runs.py", "test_zero_partitions.py", "test_nodes.py", "test_geffect.py",
    "test_secrets.py", "test_peer.py", "test_method_runs.py", "test_estimate.py",
)  # fmt: skip


def pytest_collection_finish() -> None:
    gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: _FIRST.index(item.path.name) if item.path.name in _FIRST else len(_FIRST))


@pytest.fixture(scope="module", autouse=True)
def collected() -> None:
    """Free what the module before has left in cycles."""
    gc.collect()


@pytest.fixture(autouse=True)
def frozen(collected: None) -> None:
    """Leave out what is there now when garbage is collected: DeepSpeed and Accelerate do that with every
    engine, half a second each time for the modules of all packages alone."""
    gc.freeze()


_FAST = ("gemma2", "gpt2", "llama")  # windows and capped scores; learned positions; neither


@pytest.fixture(
    params=[pytest.param(f, marks=[] if f in _FAST else [pytest.mark.slow]) for f in sorted(FAMILIES)]
)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="session")
def tiny_model() -> Callable[[str], PreTrainedModel]:
    """A tiny model of a family in evaluation mode, the same weights at each call."""

    import torch
    import transformers

    from unlearn.models import nano

    def build(family: str) -> PreTrainedModel:
        kind, values = FAMILIES[family]
        with nano.seeded(0):
            model: PreTrainedModel = transformers.AutoModelForCausalLM.from_config(
                getattr(transformers, kind)(**values), dtype=torch.float32
            )
        return model.eval()

    return build


@pytest.fixture(scope="session")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a nano model with seed 1; to be read only."""
    from unlearn.config import NanoConfig
    from unlearn.models import export, nano

    folder = tmp_path_factory.mktemp("saved") / "model"
    model = nano.model(NanoConfig(), seed=1)
    export.save_pretrained(model, nano.tokenizer(NanoConfig().vocabulary), folder)
    return folder


@pytest.fixture(scope="session")
def nano_tokenizer() -> PreTrainedTokenizerBase:
    from unlearn.models import nano

    return nano.tokenizer(1536)


@pytest.fixture(scope="session")
def bpe_tokenizer() -> Callable[..., PreTrainedTokenizerFast]:
    """A byte-level tokenizer like GPT-2's, trained on the given texts; no chat template."""

    from tokenizers import Tokenizer, decoders, pre_tokenizers, trainers
    from tokenizers.models import BPE
    from transformers import PreTrainedTokenizerFast

    def build(*texts: str, split_words: bool = True) -> PreTrainedTokenizerFast:
        bpe = Tokenizer(BPE())
        bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=split_words)
        bpe.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<s>", "</s>"],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
        bpe.train_from_iterator(texts, trainer)
        return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>", eos_token="</s>")

    return build
