"""Whether what was forgotten comes back when the model's weights are rounded to a few bits.

Unlearning moves weights little, and rounding can put them back to what the target's round to (arXiv
2410.16454). Rounding is to nearest, without calibration data; it is simulated: weights take the rounded
values in compute precision. Compare with the run's own metrics, and with the same of the retain model.
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
"""What stands before the keys of a benchmark."""
ATTACK = True


class Options(Section):
    """`bits` 8 and 4 are the widths models are served at; that 4 undoes more than 8 is the usual finding.

    `group` input weights of a row share a scale, or (None) the whole row, one output channel: the coarsest
    that is in use, and so the hardest on what unlearning changed. `symmetric` ranges, ±(2^(bits−1) − 1)
    steps around 0, are what 8-bit inference uses; else each group has a zero point of its own. As quantisers
    have it by default, embeddings stay as they are; so does the output head unless `head`. `skip` are names
    or patterns of further modules. `roles` are those of the sets that are scored: all, since what comes back
    says little of a model that is broken otherwise.
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
    """`quantisation/int<bits>/…`, and `quantisation/share` of the model's parameters that were rounded."""
    metrics: dict[str, float] = {}
    for bits in options.bits:
        model = bench.unlearned()
        metrics["quantisation/share"] = quantise(model, bits, options)
        label = f"quantisation/int{bits}"
        metrics |= prefixed(label, bench.score(model, label, options.roles))
        del model  # before there is another
    return metrics


def quantise(model: nn.Module, bits: int, options: Options) -> float:
    """Round the weights of all linear layers in place; the share of the parameters that these are."""
    rounded = 0
    for module in linears(model, options):
        weight = module.weight.detach()
        rows = weight.transpose(0, 1) if isinstance(module, Conv1D) else weight  # GPT-2 keeps [in, out]
        rows.copy_(quantised(rows, bits, options.group, symmetric=options.symmetric))
        rounded += weight.numel()
    return rounded / sum(p.numel() for p in model.parameters())


def linears(model: Any, options: Options) -> Iterator[nn.Linear | Conv1D]:
    """The layers to round: all linear ones but the head and what is skipped.

    A head that shares its weight with the embeddings always stays. Of attached edits the model beside a
    contrast is rounded too; small edits stay, as adapters do.
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
    """The nearest values to a weight [out, in] that `bits` can tell apart, fp32; halves go to even.

    Each row is cut in groups of `group` columns, the last of which may be shorter. Symmetric: multiples of
    max|w| ÷ (2^(bits−1) − 1). Else 2^bits values from the least to the largest weight, of which one is 0.
    """
    out, columns = weight.shape
    size = group or columns
    padding = -columns % size  # zeros change no range: 0 belongs to every one
    w = nn.functional.pad(weight.float(), (0, padding)).view(out, -1, size)
    if symmetric:
        most = 2 ** (bits - 1) - 1
        scale = _divisor(w.abs().amax(-1, keepdim=True) / most)
        found = (w / scale).round().clamp(-most, most) * scale
    else:
        low = w.amin(-1, keepdim=True).clamp(max=0)
        scale = _divisor((w.amax(-1, keepdim=True).clamp(min=0) - low) / (2**bits - 1))
        zero = (-low / scale).round()
        found = ((w / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale
    return found.view(out, -1)[:, :columns]


def _divisor(scale: Tensor) -> Tensor:
    return torch.where(scale > 0, scale, 1.0)
