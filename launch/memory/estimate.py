"""How much memory a training takes, on paper: nothing is loaded and nothing is allocated.

Weights, gradients and optimizer state follow ZeRO (arXiv 1910.02054, §3 and §5) as DeepSpeed 0.19 lays them
out; activations are what autograd keeps of a block of a Llama and what its backward adds at the worst moment.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, fields
from typing import Any

from torch import nn

from unlearn.config import HardwareConfig, MethodConfig, RunConfig
from unlearn.models import load as models
from unlearn.rules import make_rule
from unlearn.terms import bind
from unlearn.training.deepspeed_config import deepspeed_config

GIB = 2**30
BUCKET = 500_000_000
"""Elements of DeepSpeed's buffer for gradients on their way (`reduce_bucket_size`); GPUs have all of it."""
GATHERED = 1_000_000_000
"""Elements that ZeRO-3 keeps whole because they are soon used again (`stage3_max_reuse_distance`)."""
_KINDS = {"norm": ("norm", "ln_"), "in": ("q_proj", "k_proj", "v_proj", "qkv", "query_key_value", "c_attn"),
          "up": ("gate_proj", "up_proj", "fc1", "h_to_4h", "c_fc"),
          "down": ("down_proj", "fc2", "4h_to_h")}  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """What of a model decides how much memory it takes; `learned`: which parts of a block are trained."""

    vocabulary: int
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    inner: int
    parameters: int
    trained: int
    gated: bool = True
    attention: str = "sdpa"
    learned: frozenset[str] = frozenset(_KINDS)
    head_learned: bool = True
    adapters: int = 0  # sum of the ranks of the adapters in a block
    first: int = 0  # the lowest block with something to train


@dataclass(frozen=True)
class Load:
    """One micro-batch: padded tokens, the longest sequence, and the positions that the head runs on.

    `cached`: answer tokens that a frozen model is asked about once, before the training.
    """

    tokens: int
    width: int
    answers: int
    cached: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. The first seven are on its device, `host` is in the machine's memory beside it.

    `activations` are those kept for the backward, `peak` what its worst moment adds (mostly the head's
    logits); `buffers` are DeepSpeed's, `extras` what the method keeps. `cache` is on disk and in the host's
    memory: what frozen models gave.
    """

    parameters: float = 0.0
    gradients: float = 0.0
    optimizer: float = 0.0
    activations: float = 0.0
    peak: float = 0.0
    buffers: float = 0.0
    extras: float = 0.0
    host: float = 0.0
    cache: float = 0.0

    @property
    def device(self) -> float:
        apart = {"host", "cache"}
        return float(sum(getattr(self, part.name) for part in fields(self) if part.name not in apart))


def estimate(shape: Shape, config: RunConfig, load: Load) -> Memory:
    """The most that a process holds while it trains, compared with `torch.cuda.max_memory_allocated`."""
    hardware, method = config.hardware, config.method
    if not method.sets:  # evaluates
        return Memory(parameters=shape.parameters * _size(hardware))
    kept, extra = activations(shape, hardware, method, load)
    state = _state(shape, hardware)
    return Memory(
        **state, activations=kept, peak=extra, extras=_extras(shape, hardware, method),
        cache=_cache(shape, method, load),
    )  # fmt: skip


def _size(hardware: HardwareConfig) -> int:
    return 2 if hardware.dtype == "bf16" else 4


def _state(shape: Shape, hardware: HardwareConfig) -> dict[str, float]:
    """Weights, gradients, optimizer state and buffers, and what of them is offloaded."""
    size, share = _size(hardware), hardware.processes
    stage = deepspeed_config(hardware, clip=0.0)["zero_optimization"]["stage"]
    trained = shape.trained / (share if stage else 1)
    on_gpu = hardware.device == "cuda"
    bucket = size * (BUCKET if on_gpu else min(BUCKET, shape.trained)) if stage else 0
    parameters: float = shape.parameters * size
    host = 0.0
    if stage == 3:
        host = parameters / share if hardware.offload else 0.0
        parameters = 0.0 if hardware.offload else parameters / share
        bucket += size * min(shape.parameters, GATHERED) if share > 1 or hardware.offload else 0
    # ZeRO 1 and 2 step on a copy in fp32, whatever the weights are in; ZeRO 3 where they are not fp32.
    master = 4 if stage in (1, 2) or (stage and size == 2) else 0
    gradients, optimizer = 4 * trained, (8 + master) * trained
    if hardware.offload:  # the gradient is kept twice: as it was summed, and as the optimizer's
        host += gradients * 2 + optimizer
        gradients = optimizer = 0.0
    return {
        "parameters": parameters, "gradients": gradients, "optimizer": optimizer, "buffers": bucket,
        "host": host,
    }  # fmt: skip


def activations(
    shape: Shape, hardware: HardwareConfig, method: MethodConfig, load: Load
) -> tuple[float, float]:
    """What a micro-batch's forward leaves for its backward, and the most that the backward adds to that."""
    size, tokens = _size(hardware), load.tokens
    block = block_bytes(shape, size, load.width) * tokens
    layers = shape.layers - shape.first
    last = _norm(shape, size, True) * tokens + load.answers * shape.hidden * size
    head = _head(shape, hardware, method, load)
    # Gradients of the widest places of a block, while its own are not freed yet.
    inside = (3 * shape.inner + 2 * shape.hidden) * size * tokens
    if hardware.activation_checkpointing:
        return shape.layers * shape.hidden * size * tokens + last, max(head, block + inside)
    return layers * block + last, max(head, inside)


def block_bytes(shape: Shape, size: int, width: int) -> float:
    """What autograd keeps of one token in one block, in bytes."""
    learned = shape.learned
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # Both norms: their input in fp32, its normalised form for the norm's weight, their output for matrices.
    found: float = _norm(shape, size, "in" in learned) + _norm(shape, size, "up" in learned)
    found += size * (2 * queries + 2 * keys)  # queries, keys, values and what comes out
    if shape.attention == "eager":  # probabilities of every pair in fp32, and in compute precision
        found += shape.heads * width * (4 if size == 4 else 4 + size)
    else:
        found += 4 * shape.heads  # the logarithm of each softmax's sum
    # The gate before and after its activation and what it multiplies; and their product, if it is learned on.
    found += size * shape.inner * ((3 if shape.gated else 1) + ("down" in learned))
    return found + size * shape.adapters


def _norm(shape: Shape, size: int, feeds: bool) -> int:
    return shape.hidden * (4 + size * ("norm" in shape.learned) + size * feeds) + 4


def _head(shape: Shape, hardware: HardwareConfig, method: MethodConfig, load: Load) -> float:
    """Logits and their gradient, the block in fp32 that log-softmax works on, the head's own gradient."""
    needed = [each for term in bind(method) for each in term.statistics]
    if not any(each.needs_head for each in needed):
        return 0.0
    size, row = _size(hardware), load.answers * shape.vocabulary
    found: float = 2 * row * size + 8 * min(row, 1 << (24 if hardware.device == "cuda" else 19))
    found += size * shape.vocabulary * shape.hidden * shape.head_learned
    logits = [each for each in needed if each.quantity == "logits"]
    whole = sum(each.source == "model" for each in logits)
    others = len(logits) - whole
    return found + row * (size * others + 12 * whole)  # objectives on whole distributions work in fp32


def _extras(shape: Shape, hardware: HardwareConfig, method: MethodConfig) -> float:
    """What the gradient rule, the mean teacher, the probing schedule and frozen heads keep."""
    size, share = _size(hardware), hardware.processes
    stage = deepspeed_config(hardware, clip=0.0)["zero_optimization"]["stage"]
    terms = bind(method)
    whole, part = shape.trained, shape.trained / share
    found = 0.0
    if make_rule(**method.rule.model_dump()).separate:  # a share of the gradient for each term
        found += len(terms) * 4 * (part if stage else whole)
    live = part if stage == 3 else whole
    needed = {each for term in terms for each in term.statistics}
    if any(
        each.source == "teacher" for each in needed
    ):  # in fp32, and while it is asked in compute precision
        found += live * (4 + (size if size == 2 else 0))
    if method.schedule == "auto":  # weights before and after an update, and between, while it is probed
        found += 3 * live * size
    heads = sum(each.cached and each.quantity == "logits" for each in needed)
    return found + heads * shape.vocabulary * shape.hidden * size


def _cache(shape: Shape, method: MethodConfig, load: Load) -> float:
    """Kept of frozen models for each answer token: a number, or the states that enter the head or a layer."""
    cached = {each for term in bind(method) for each in term.statistics if each.cached}
    numbers = sum(each.quantity == "logp" for each in cached)
    states = len(cached) - numbers
    return 4.0 * load.cached * (numbers + states * shape.hidden)


def shape_of(config: RunConfig) -> Shape | None:
    """The shape of the run's model with its adapters or edits; None where it is not on this machine."""
    model = models.blueprint(config.model, config.method)
    return None if model is None else read_shape(model)


def read_shape(model: nn.Module) -> Shape:
    """The shape of a causal model of transformers, whatever device it is on, and of what is to be trained."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    named = dict(model.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    places = [int(found[1]) for name in trained if (found := re.search(r"\.(\d+)\.", name))]
    low = [p for name, p in trained.items() if "lora_A" in name]
    embeddings = [p for name, p in trained.items() if not re.search(r"\.\d+\.", name) and p.ndim == 2]
    inner = getattr(text, "intermediate_size", None) or getattr(text, "ffn_dim", 4 * text.hidden_size)
    return Shape(
        vocabulary=text.vocab_size, hidden=text.hidden_size, layers=text.num_hidden_layers, heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads, inner=inner,
        parameters=sum(p.numel() for p in named.values()), trained=sum(p.numel() for p in trained.values()),
        gated=any("gate_proj" in name for name in named), attention=config._attn_implementation or "sdpa",
        learned=frozenset(k for k, words in _KINDS.items() if any(w in n for n in trained for w in words)),
        head_learned=bool(embeddings), adapters=sum(p.shape[0] for p in low) // text.num_hidden_layers,
        first=0 if embeddings else min(places, default=0),
    )  # fmt: skip


def bound(config: RunConfig) -> Load:
    """The largest micro-batch there can be: every text as long as allowed, all of it answers."""
    method, hardware = config.method, config.hardware
    width = config.dataset.max_length
    kinds = max(1, len({term.group for term in bind(method)}))
    step = -(-method.batch // hardware.processes) * kinds * width
    most = hardware.micro_batch * kinds * width if hardware.micro_batch else hardware.micro_tokens
    tokens = max(width, min(step, most))
    return Load(tokens, width, tokens)
