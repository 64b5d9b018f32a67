"""Small models of many families, and sequences for them, for the tests of gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    MixtralConfig,
    OPTConfig,
    PhiConfig,
    Qwen2Config,
)

from unlearn.data.tokenization import TokenSequence

SIZE: dict[str, Any] = {
    "vocab_size": 97,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "initializer_range": 0.3,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {**SIZE, "num_key_value_heads": 1}
CONFIGS = {
    "llama": LlamaConfig(**GROUPED),
    "llama tied": LlamaConfig(**SIZE, tie_word_embeddings=True),
    "gpt2": GPT2Config(
        vocab_size=97,
        bos_token_id=None,
        eos_token_id=None,
        n_embd=16,
        n_layer=2,
        n_head=2,
        initializer_range=0.3,
    ),
    "opt": OPTConfig(**SIZE, ffn_dim=24, word_embed_proj_dim=8, max_position_embeddings=64),
    "phi": PhiConfig(**SIZE, qk_layernorm=True),
    "qwen2": Qwen2Config(**GROUPED, tie_word_embeddings=True),
    "gemma2": Gemma2Config(**GROUPED, head_dim=8, query_pre_attn_scalar=8, final_logit_softcapping=5.0),
    "gemma3": Gemma3TextConfig(**GROUPED, head_dim=8, query_pre_attn_scalar=8),
    "mixtral": MixtralConfig(**GROUPED, num_local_experts=3),
}

IN_ITS_DTYPE = ("gpt2", "opt", "phi")
"""Families that norm in the format of their weights. The others do so in fp32, whatever weights are in."""


def exactness(name, dtype):
    """Return the format to which a family's float64 results are exact."""
    return dtype if name in IN_ITS_DTYPE else torch.float32


def made(name, dtype=torch.float32):
    config = CONFIGS[name]
    with torch.random.fork_rng():
        torch.manual_seed(5)
        # Mixtral's experts: the other implementations know no float64.
        model = AutoModelForCausalLM.from_config(config, experts_implementation="eager")
        for p in model.parameters():  # biases and norms too, which begin as zeros and ones
            p.data += 0.1 * torch.randn_like(p)
    return model.to(dtype).eval()


def sequences(count=7, seed=3):
    rng = np.random.default_rng(seed)
    sizes = [(int(rng.integers(2, 9)), int(rng.integers(1, 12))) for _ in range(count)]
    # Token 0 among them: look-ups of it leave no gradient where it is the padding.
    return [TokenSequence(rng.integers(0, 97, a + b) % 30, a, ended=True) for a, b in sizes]


def adapted() -> Any:
    """The Llama with adapters that are not zero, on attention, MLP and head."""
    config = LoraConfig(r=3, target_modules=["q_proj", "down_proj", "lm_head"], init_lora_weights=False)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return get_peft_model(made("llama"), config).eval()
