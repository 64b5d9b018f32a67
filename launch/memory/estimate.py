"""Estimate the memory of a training by formula: nothing is loaded or allocated.

Weights, gradients and optimizer state follow ZeRO (arXiv 1910.02054, §3 and §5) as DeepSpeed 0.19 allocates
them. Activations are the tensors of a Llama block that autograd keeps, and the peak that the backward adds.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, fields, replace
from typing import Any

from torch import nn

from unlearn.config import HardwareConfig, MethodConfig, ModelConfig, RunConfig
from unlearn.models import load as models
from unlearn.models import nano
from unlearn.models.skeleton import is_plain_nano
from unlearn.rules import Remembering, make_rule
from unlearn.terms import bind
from unlearn.training.deepspeed_config import keeps_remainders, shards_models, stage_of
from unlearn.training.optimizers import BLOCK, CHUNK
from unlearn.training.step_data import kinds

GIB = 2**30
BUCKET = 500_000_000
"""Elements of DeepSpeed's buffer for reducing gradients (`reduce_bucket_size`); on GPUs it has full size."""
GATHERED = 1_000_000_000
"""Elements that ZeRO-3 keeps gathered for an early reuse (`stage3_max_reuse_distance`)."""
SUB_GROUP = 1_000_000_000
"""Elements of a partition that ZeRO-3 updates at a time (`sub_group_size`)."""
HEAD_PIECE, HEAD_BLOCK = 1 << 26, 1 << 24
"""Logits that the fused head has at a time in compute precision, and of these in fp32 (on a CPU fewer)."""
UPDATED = 32
"""Bytes of an element that is updated in chunks: fp32 weight, gradient, moments, and their codes to be."""
_KINDS = {"norm": ("norm", "ln_"), "in": ("q_proj", "k_proj", "v_proj", "qkv", "query_key_value", "c_attn"),
          "up": ("gate_proj", "up_proj", "fc1", "h_to_4h", "c_fc"),
          "down": ("down_proj", "fc2", "4h_to_h")}  # fmt: skip


def with_unit(size: float) -> str:
    """Write bytes in the largest unit of which there is at least one: `3.1 MiB`; `–` for none."""
    if not size:
        return "–"
    power = min(int(math.log2(max(size, 1)) / 10), 4)
    return f"{size / 1024**power:.{min(power, 1)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


@dataclass(frozen=True)
class Shape:
    """The sizes of a model that determine its memory; `learned`: the trained parts of a block."""

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
    first: int = 0  # the lowest block with trained parameters


@dataclass(frozen=True)
class Load:
    """One micro-batch: padded tokens, length of the longest sequence, and positions of the head.

    `cached`: answer tokens whose outputs of frozen models are cached before the training.
    """

    tokens: int
    width: int
    answers: int
    cached: int = 0


@dataclass(frozen=True)
class Memory:
    """Bytes of one process. The first seven parts are on its device, `host` is in the machine's memory.

    `activations` are kept for the backward, and `peak` is the maximum that the backward adds (mainly
    logits). `buffers` are DeepSpeed's, `extras` the method's. `cache` holds outputs of frozen models, on disk
    and in the host's memory.
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
        elsewhere = {"host", "cache"}
        return float(sum(getattr(self, part.name) for part in fields(self) if part.name not in elsewhere))


def estimate(shape: Shape, config: RunConfig, load: Load) -> Memory:
    """Estimate the peak memory of a training process, as `torch.cuda.max_memory_allocated` reports it."""
    hardware, method = config.hardware, config.method
    if not method.sets:  # evaluation only
        return Memory(**_weights(shape, hardware))
    saved, peak = activations(shape, hardware, method, load)
    state = _state(shape, hardware)
    peak = max(peak, _step(shape, hardware) - saved)  # activations are freed before the step
    return Memory(
        **state, activations=saved, peak=peak,
        extras=_extras(shape, hardware, method) + _probed(shape, config), cache=_cache(shape, method, load),
    )  # fmt: skip


def _size(hardware: HardwareConfig) -> int:
    return 2 if hardware.dtype == "bf16" else 4


def _weights(shape: Shape, hardware: HardwareConfig) -> dict[str, float]:
    """Estimate the weights of a model that is evaluated; at ZeRO 3 also what is gathered."""
    size = _size(hardware)
    parameters: float = shape.parameters * size
    if not shards_models(hardware):
        return {"parameters": parameters}
    gathered, part = size * min(shape.parameters, GATHERED), parameters / hardware.processes
    key = "host" if hardware.offload else "parameters"
    return {key: part, "buffers": gathered}


def _state(shape: Shape, hardware: HardwareConfig) -> dict[str, float]:
    """Estimate weights, gradients, optimizer state and buffers, with the offloaded ones in `host`."""
    size, share, stage = _size(hardware), hardware.processes, stage_of(hardware)
    trained = shape.trained / (share if stage else 1)
    on_gpu = hardware.device == "cuda"
    # On a CPU its pages come while activations go.
    bucket = size * BUCKET if stage and on_gpu else 0
    parameters: float = shape.parameters * size
    host = 0.0
    if stage == 3:
        host = parameters / share if hardware.offload else 0.0
        parameters = 0.0 if hardware.offload else parameters / share
        bucket += size * min(shape.parameters, GATHERED) if share > 1 or hardware.offload else 0
    # ZeRO 1 and 2 always update an fp32 copy of the weights; ZeRO 3 only where the weights are not fp32.
    master = 4 if stage in (1, 2) or (stage and size == 2) else 2 if keeps_remainders(hardware) else 0
    moments = 2 * (1 + 4 / BLOCK) if hardware.optimizer == "adamw-8bit" else 8
    gradients, optimizer = _gradient_size(hardware) * trained, (moments + master) * trained
    if hardware.offload:
        host += optimizer + 4 * trained  # with the gradient that the optimizer reads, in addition to the sum
        optimizer = 0.0
        if stage < 3:  # updated weights on their way to the device, and a parameter's gradient to the host
            host += size * (trained + _largest(shape))
            bucket += size * _largest(shape)
        if not _sums_on_device(hardware):
            host, gradients = host + gradients, 0.0
    return {
        "parameters": parameters, "gradients": gradients, "optimizer": optimizer, "buffers": bucket,
        "host": host,
    }  # fmt: skip


def _gradient_size(hardware: HardwareConfig) -> int:
    return 2 if hardware.gradients == "bf16" else 4


def _sums_on_device(hardware: HardwareConfig) -> bool:
    """Return whether gradients are summed on the device, which ZeRO 1 and 2 do in fp32 with offload, too."""
    widened = hardware.dtype == "bf16" and _gradient_size(hardware) == 4
    return not hardware.offload or (stage_of(hardware) < 3 and widened)


def _largest(shape: Shape) -> int:
    """Return the elements of the largest trained parameter, of adapters a bound."""
    return min(shape.trained, max(shape.vocabulary, shape.inner) * shape.hidden)


def _step(shape: Shape, hardware: HardwareConfig) -> float:
    """Estimate what reducing the gradient and updating take for a while, in addition to the state."""
    stage, size = stage_of(hardware), _gradient_size(hardware)
    trained = shape.trained / (hardware.processes if stage else 1)
    if hardware.offload:
        return _offloaded_step(shape, hardware, trained) if stage < 3 else 0.0
    chunked = hardware.optimizer == "adamw-8bit" or keeps_remainders(hardware)
    # A chunk is of one parameter; the embeddings are the largest.
    update = UPDATED * min(trained, CHUNK, shape.vocabulary * shape.hidden) if chunked else 0.0
    if stage == 0:  # a bucket and the parameter that fills it, flattened, and reduced in fp32
        return max(update, min(trained, 2 * BUCKET) * (size if size == 4 else size + 4))
    # The optimizer's flat gradient in fp32, and the flattened one that it is made from.
    flat = 4 if size == 4 else size + 4
    if stage < 3 and hardware.dtype == "bf16" and size == 4:
        flat = 0  # summed where the optimizer reads it
    norm = 8 * min(trained, _largest(shape)) if stage < 3 else 0.0  # of each parameter, in fp64
    return max(norm, update + flat * min(trained, SUB_GROUP if stage == 3 else trained))


def _offloaded_step(shape: Shape, hardware: HardwareConfig, trained: float) -> float:
    """Estimate what ZeRO 1 and 2 with offload take in addition to the state, where that is more than 0.

    In a step there is no bucket. When DeepSpeed is made there are no buffers and no gradients, but a copy of
    the trained weights on their way to the host.
    """
    size, largest = _size(hardware), _largest(shape)
    on_device = _sums_on_device(hardware)
    bucket = size * BUCKET if hardware.device == "cuda" else 0
    # The norm of each gradient is computed in fp64; one that was summed on the host comes back for it.
    step = (8 if on_device else 8 + size) * largest - bucket
    start = size * trained - bucket - size * largest - (4 * trained if on_device else 0)
    return max(step, start, 0.0)


def activations(
    shape: Shape, hardware: HardwareConfig, method: MethodConfig, load: Load
) -> tuple[float, float]:
    """Estimate the activations of a micro-batch that its backward needs, and the peak of that backward."""
    size, tokens = _size(hardware), load.tokens
    block = block_bytes(shape, size, load.width) * tokens
    layers = shape.layers - shape.first
    last = _norm(shape, size, True) * tokens + load.answers * shape.hidden * size
    head = _head(shape, hardware, method, load)
    # Gradients at the widest point of a block, before its activations are freed.
    inside = (3 * shape.inner + 2 * shape.hidden) * size * tokens
    if hardware.activation_checkpointing:
        return shape.layers * shape.hidden * size * tokens + last, max(head, block + inside)
    return layers * block + last, max(head, inside)


def captured(shape: Shape, hardware: HardwareConfig, load: Load) -> float:
    """Estimate what the gradient norms of a forward's examples take: of all weights, nothing recomputed.

    Logits and their gradient are whole. The inputs and output gradients of all layers, which are kept to the
    end, are less than the activations.
    """
    size = _size(hardware)
    whole = replace(shape, learned=frozenset(_KINDS))
    saved = shape.layers * block_bytes(whole, size, load.width) + _norm(whole, size, True)
    return saved * load.tokens + size * load.answers * (shape.hidden + 2 * shape.vocabulary)


def block_bytes(shape: Shape, size: int, width: int) -> float:
    """Return the bytes that autograd saves for one token in one block."""
    learned = shape.learned
    queries, keys = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    # Both norms: the input in fp32, its normalised form for the norm's weight, the output for matrices.
    saved: float = _norm(shape, size, "in" in learned) + _norm(shape, size, "up" in learned)
    saved += size * (2 * queries + 2 * keys)  # queries, keys, values and the output
    if shape.attention == "eager":  # probabilities of every pair in fp32, and in compute precision
        saved += shape.heads * width * (4 if size == 4 else 4 + size)
    else:
        saved += 4 * shape.heads  # the logarithm of each softmax's sum
    # The gate before and after its activation, the other factor, and their product if `down` is trained.
    saved += size * shape.inner * ((3 if shape.gated else 1) + ("down" in learned))
    return saved + size * shape.adapters


def _norm(shape: Shape, size: int, feeds: bool) -> int:
    return shape.hidden * (4 + size * ("norm" in shape.learned) + size * feeds) + 4


def _head(shape: Shape, hardware: HardwareConfig, method: MethodConfig, load: Load) -> float:
    """Estimate what the fused head takes at its widest: a piece of logits, and its weight's gradient.

    Logits become their gradient in place, blocks of them in fp32. The weight's gradient is in compute
    precision; of several pieces there is their sum in fp32, too. Objectives on whole distributions hold all
    logits.
    """
    needed = [each for term in bind(method) for each in term.statistics]
    if not any(each.needs_head for each in needed):
        return 0.0
    size, row = _size(hardware), load.answers * shape.vocabulary
    block = HEAD_BLOCK if hardware.device == "cuda" else 1 << 19
    head: float = size * min(row, HEAD_PIECE) + 8 * min(row, block)
    sums = 4 if row > HEAD_PIECE and size == 2 else 0
    head += (size + sums) * shape.vocabulary * shape.hidden * shape.head_learned
    logits = [each for each in needed if each.quantity == "logits"]
    whole = sum(each.source == "model" for each in logits)
    others = len(logits) - whole
    return head + row * (size * (others + 2 * bool(whole)) + 12 * whole)  # whole ones are computed in fp32


_SMOOTHED = {"none": 0, "average": 1, "sam": 1, "random": 2, "penalty": 2, "curvature": 6}
"""Gradients or weights in fp32 that `method.smooth` holds during its passes, by its name."""


def _extras(shape: Shape, hardware: HardwareConfig, method: MethodConfig) -> float:
    """Estimate the tensors of the gradient rule, smoothing, the mean teacher, `schedule=auto`, heads."""
    size, share, stage = _size(hardware), hardware.processes, stage_of(hardware)
    terms = bind(method)
    whole, part = shape.trained, shape.trained / share
    extras = 0.0
    rule = make_rule(**method.rule.model_dump())
    if rule.separate:  # a partition of the gradient for each term, and of the one that the rule keeps
        kept = isinstance(rule, Remembering) and rule.keeps
        extras += (len(terms) + kept) * 4 * (part if stage else whole)
    live = part if stage == 3 else whole
    extras += _SMOOTHED[method.smooth.name] * 4 * (part if stage else whole)
    if method.smooth.name not in ("none", "average"):  # weights at a shift, in compute precision
        extras += live * size + _gathered(shape, hardware)
    needed = {each for term in terms for each in term.statistics}
    if any(each.source == "teacher" for each in needed):
        # In fp32, and during its forward in compute precision.
        extras += live * (4 + (size if size == 2 else 0))
    if method.schedule == "auto":  # masters before a probed update and between, and live weights of these
        extras += 2 * 4 * (part if stage else whole) + live * size + _gathered(shape, hardware)
    heads = sum(each.cached and each.quantity == "logits" for each in needed)
    return extras + heads * shape.vocabulary * shape.hidden * size


def _gathered(shape: Shape, hardware: HardwareConfig) -> float:
    """Estimate one whole vector in fp32, which processes with parts of it hold where weights are whole."""
    several = stage_of(hardware) in (1, 2) and hardware.processes > 1
    return 4.0 * shape.trained if several else 0.0


def _probed(shape: Shape, config: RunConfig) -> float:
    """Estimate the gradients that a measurement of the G-effect holds, in fp32.

    Those of the two risks, of the objective, and of one term at a time, or of all where a rule combines them;
    and one whole direction.
    """
    if config.probe.name != "geffect":
        return 0.0
    separate = make_rule(**config.method.rule.model_dump()).separate
    gradients = 3 + (len(bind(config.method)) if separate else 1)
    parts = config.hardware.processes if stage_of(config.hardware) else 1
    return gradients * 4 * shape.trained / parts + _gathered(shape, config.hardware)


def _cache(shape: Shape, method: MethodConfig, load: Load) -> float:
    """Estimate the cached outputs of frozen models: a number or hidden states for each answer token."""
    cached = {each for term in bind(method) for each in term.statistics if each.cached}
    cached = {each for each in cached if each.quantity != "direction"}  # from states that are there anyway
    numbers = sum(each.quantity == "logp" for each in cached)
    states = len(cached) - numbers
    return 4.0 * load.cached * (numbers + states * shape.hidden)


def shape_of(config: RunConfig) -> Shape | None:
    """Return the shape of the run's model with adapters or edits; None if it is not on this machine."""
    if is_plain_nano(config):
        return _nano_shape(config.model)
    model = models.trainable_skeleton(config.model, config.method)
    return None if model is None else read_shape(model)


def _nano_shape(cfg: ModelConfig) -> Shape:
    size, inner = cfg.nano, nano.inner_size(cfg.nano)
    block = 4 * size.hidden_size**2 + 3 * size.hidden_size * inner + 2 * size.hidden_size
    parameters = size.vocabulary * size.hidden_size + size.layers * block + size.hidden_size
    return Shape(
        vocabulary=size.vocabulary, hidden=size.hidden_size, layers=size.layers, heads=size.heads,
        kv_heads=size.heads, head_dim=size.hidden_size // size.heads, inner=inner, parameters=parameters,
        trained=parameters, attention=cfg.attention,
    )  # fmt: skip


def read_shape(model: nn.Module) -> Shape:
    """Read the shape of a causal model of transformers, on any device, and of its trained parameters."""
    config: Any = model.config
    text = config.get_text_config(decoder=True)
    heads = text.num_attention_heads
    named = dict(model.named_parameters())
    trained = {name: p for name, p in named.items() if p.requires_grad}
    blocks = [int(match[1]) for name in trained if (match := re.search(r"\.(\d+)\.", name))]
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
        first=0 if embeddings else min(blocks, default=0),
    )  # fmt: skip


def bound(config: RunConfig) -> Load:
    """Return the largest possible micro-batch: texts of `dataset.max_length` tokens, all answer tokens.

    An example whose answer and alternatives are both needed goes through the model with each of them, and is
    not divided.
    """
    method, hardware = config.method, config.hardware
    width = config.dataset.max_length
    passes = [len(some) for some in kinds((term, term.needs) for term in bind(method)).values()] or [1]
    step = -(-method.batch // hardware.processes) * sum(passes) * width
    limit = hardware.micro_batch * sum(passes) * width if hardware.micro_batch else hardware.tokens
    tokens = max(max(passes) * width, min(step, limit))
    return Load(tokens, width, tokens)
