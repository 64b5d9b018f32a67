"""Round the model's weights to a few bits, to see whether what was forgotten comes back.

Unlearning changes weights little, and rounding can give the same values as the target's (arXiv 2410.16454).
Rounding is to nearest, without calibration data, and simulated: weights have the rounded values in compute
precision. Compare with the run's own metrics, and with this variant of the retain model.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from eval.benchmark import Role
from eval.variants._base import ROLES, Workbench, prefixed
from unlearn.config import RunConfig, Section

SETS: tuple[str, ...] = ()
KEYS = r"quantisation/[^/]+"
"""Prefix of a benchmark's keys."""
ATTACK = True


class Options(Section):
    """Options of the variant. Embeddings are not rounded, as in quantisers by default.

    - `bits`: models are served with 8 and 4; usually 4 undoes more than 8.
    - `group`: how many input weights of a row share a scale. None: the whole row, one output channel, which
      is the coarsest in use, and so changes unlearning most.
    - `symmetric`: ranges of ±(2^(bits−1) − 1) steps around 0, as in 8-bit inference; otherwise each group has
      its own zero point.
    - `head`: also round the output head.
    - `skip`: names or patterns of modules that are not rounded.
    - `roles`: of the sets that are scored; all, to see whether the model is broken otherwise.
    """

    bits: tuple[int, ...] = (8, 4)
    group: int | None = None
    symmetric: bool = True
    head: bool = False
    skip: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ROLES


def check(options: Options, config: RunConfig) -> list[str]:
    problems = []
    if not options.bits or not all(2 <= bits <= 8 for bits in options.bits):
        problems.append(f"bits={list(options.bits)}: give one or more widths from 2 to 8")
    if options.group is not None and options.group < 1:
        problems.append(f"group={options.group}: give a number of weights, or null for whole rows")
    if not options.roles:
        problems.append(f"roles=[]: no set would be scored; give some of {', '.join(ROLES)}")
    return problems


def identity(options: Options) -> Any:
    return options.model_dump() | {"roles": None}


def measure(bench: Workbench, options: Options) -> dict[str, float]:
    """Return `quantisation/int<bits>/…`, and `quantisation/share` of the parameters that were rounded."""
    metrics: dict[str, float] = {}
    for bits in options.bits:
        model = bench.unlearned()
        metrics["quantisation/share"] = quantise(model, bits, options)
        label = f"quantisation/int{bits}"
        metrics |= prefixed(label, bench.score(model, label, options.roles))
        del model  # free it before the next
    return metrics


def quantise(model: nn.Module, bits: int, options: Options) -> float:
    """Round the weights of all linear layers in place; return their share of the parameters."""
    rounded = 0
    for module in linears(model, options):
        weight = module.weight.detach()
        rows = weight.transpose(0, 1) if isinstance(module, Conv1D) else weight  # GPT-2 keeps [in, out]
        rows.copy_(quantised(rows, bits, options.group, symmetric=options.symmetric))
        rounded += weight.numel()
    return rounded / sum(p.numel() for p in model.parameters())


def linears(model: Any, options: Options) -> Iterator[nn.Linear | Conv1D]:
    """Yield the layers to round: all linear layers but the head and those that are skipped.

    A head that shares its weight with the embeddings is never rounded. Of attached edits, a reinforced model
    is rounded too; small edits are not, like adapters.
    """
    kept: set[int] = set()
    for each in model.modules():
        head: Any = each.get_output_embeddings() if isinstance(each, PreTrainedModel) else None
        if head is not None and not (options.head and head.weight is not each.get_input_embeddings().weight):
            kept.add(id(head))
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or id(module) in kept:
            continue
        small = name.startswith("interventions.") and ".reinforced." not in name
        if not small and not any(fnmatch.fnmatch(name, pattern) for pattern in options.skip):
            yield module


def quantised(weight: Tensor, bits: int, group: int | None = None, *, symmetric: bool = True) -> Tensor:
    """Round a weight [out, in] to the values of `bits` bits, fp32; halves go to even.

    Each row is split into groups of `group` columns, the last of which may be shorter. Symmetric: multiples
    of max|w| ÷ (2^(bits−1) − 1). Otherwise 2^bits values from the smallest to the largest weight, one of
    which is 0.
    """
    out, columns = weight.shape
    size = group or columns
    padding = -columns % size  # zeros change no range: each contains 0
    w = nn.functional.pad(weight.float(), (0, padding)).view(out, -1, size)
    if symmetric:
        largest = 2 ** (bits - 1) - 1
        scale = _divisor(w.abs().amax(-1, keepdim=True) / largest)
        rounded = (w / scale).round().clamp(-largest, largest) * scale
    else:
        low = w.amin(-1, keepdim=True).clamp(max=0)
        scale = _divisor((w.amax(-1, keepdim=True).clamp(min=0) - low) / (2**bits - 1))
        zero = (-low / scale).round()
        rounded = ((w / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale
    return rounded.view(out, -1)[:, :columns]


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)
