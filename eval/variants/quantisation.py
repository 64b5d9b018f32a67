"""Round the model's weights to a few bits, to see whether what was forgotten comes back.

Unlearning changes weights little, and rounding can give the same values as the target's (arXiv 2410.16454).
Rounding is to nearest, without calibration data, and simulated: weights have the rounded values in compute
precision. Activations are not rounded. Compare with the run's own metrics, and with this variant of the
retain model.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
from pydantic import field_validator
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from eval.benchmark import Role
from eval.variants._base import ROLES, Workbench, prefixed
from eval.variants._four_bits import coded
from unlearn.config import RunConfig, Section
from unlearn.models.stored import elements

SETS: tuple[str, ...] = ()
KEYS = r"quantisation/[^/]+"
"""Prefix of a benchmark's keys."""
ATTACK = True
LIBRARY_BLOCKS = (64, 128, 256, 512, 1024, 2048, 4096)
Rounding = Callable[[Tensor], Tensor]
"""Maps a weight [out, in] to the rounded values, fp32."""


class Options(Section):
    """Options of the variant. Embeddings are not rounded, as in quantisers by default.

    - `format`: one or more of int, nf4 and fp4. int: whole numbers of `bits` bits. nf4 and fp4: the 4-bit
      formats of transformers' load_in_4bit (arXiv 2305.14314).
    - `bits`: of int; models are served with 8 and 4, and usually 4 undoes more than 8.
    - `group`: of int, how many input weights of a row share a scale. None: the whole row, one output channel,
      which is the coarsest in use, and so changes unlearning most.
    - `symmetric`: of int, ranges of ±(2^(bits−1) − 1) steps around 0, as in 8-bit inference; otherwise each
      group has its own zero point.
    - `block`: of nf4 and fp4, how many weights of the flattened matrix share a scale.
    - `library`: bitsandbytes rounds with that library in place of this code: nf4, fp4 and 8-bit rows.
    - `head`: also round the output head.
    - `skip`: names or patterns of modules that are not rounded.
    - `roles`: of the sets that are scored; all, to see whether the model is broken otherwise.
    """

    format: tuple[Literal["int", "nf4", "fp4"], ...] = ("int",)
    bits: tuple[int, ...] = (8, 4)
    group: int | None = None
    symmetric: bool = True
    block: int = 64
    library: Literal["bitsandbytes"] | None = None
    head: bool = False
    skip: tuple[str, ...] = ()
    roles: tuple[Role, ...] = ROLES

    @field_validator("format", mode="before")
    @classmethod
    def _listed(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else value


def check(options: Options, config: RunConfig) -> list[str]:
    problems = []
    if not options.bits or not all(2 <= bits <= 8 for bits in options.bits):
        problems.append(f"bits={list(options.bits)}: give one or more widths from 2 to 8")
    if options.group is not None and options.group < 1:
        problems.append(f"group={options.group}: give a number of weights, or null for whole rows")
    if options.block < 1:
        problems.append(f"block={options.block}: give a number of weights")
    if not options.format:
        problems.append("format=[]: give one or more of int, nf4, fp4")
    if not options.roles:
        problems.append(f"roles=[]: no set would be scored; give some of {', '.join(ROLES)}")
    return problems + ([] if options.library is None else _library_problems(options))


def _library_problems(options: Options) -> list[str]:
    """Return why bitsandbytes cannot round with these options."""
    problems = []
    if find_spec("bitsandbytes") is None:
        problems.append(
            "library=bitsandbytes needs bitsandbytes: pip install 'unlearn-lab[bitsandbytes]', or leave "
            "library out"
        )
    if "int" in options.format and (set(options.bits) != {8} or options.group or not options.symmetric):
        problems.append(
            "library=bitsandbytes: its integers are rows of 8 bits; set bits=[8] group=null symmetric=true, "
            "or format=nf4"
        )
    if set(options.format) != {"int"} and options.block not in LIBRARY_BLOCKS:
        sizes = ", ".join(map(str, LIBRARY_BLOCKS))
        problems.append(f"block={options.block}: bitsandbytes has blocks of {sizes}")
    return problems


def identity(options: Options) -> Any:
    return options.model_dump() | {"roles": None}


def measure(bench: Workbench, options: Options) -> dict[str, float]:
    """Return `quantisation/<name>/…`, and `quantisation/share` of the parameters that were rounded.

    Names are int<bits>, nf4 and fp4, with bnb- before them where the library rounded.
    """
    metrics: dict[str, float] = {}
    for name, rounding in roundings(options).items():
        label = f"quantisation/{name}"
        with bench.held() as (model, collective_forward):
            metrics["quantisation/share"] = quantise(model, rounding, options, bench.editing)
            scored = bench.score(model, label, options.roles, collective_forward=collective_forward)
            del model  # free it before the next
        metrics |= prefixed(label, scored)
    return metrics


def roundings(options: Options) -> dict[str, Rounding]:
    """Return the roundings of the options by the names that their metrics have."""
    named: dict[str, Rounding] = {}
    for kind in dict.fromkeys(options.format):
        if options.library is not None:
            named[f"bnb-{'int8' if kind == 'int' else kind}"] = _by_library(kind, options.block)
        elif kind == "int":
            named |= {f"int{bits}": _whole_numbers(bits, options) for bits in options.bits}
        else:
            named[kind] = partial(coded, kind=kind, block=options.block)
    return named


def _whole_numbers(bits: int, options: Options) -> Rounding:
    return partial(quantised, bits=bits, group=options.group, symmetric=options.symmetric)


def _by_library(kind: str, block: int) -> Rounding:
    from bitsandbytes import functional  # optional, and its import takes a second

    def rounded(weight: Tensor) -> Tensor:
        whole = weight.contiguous()
        if kind == "int":  # the library's kernel takes fp16 only
            rows, scales, _ = functional.int8_vectorwise_quant(whole.half())
            return functional.int8_vectorwise_dequant(rows, scales)
        codes, state = functional.quantize_4bit(whole, blocksize=block, quant_type=kind)
        return functional.dequantize_4bit(codes, state).float()

    return rounded


def quantise(
    model: nn.Module, rounding: Rounding, options: Options,
    editing: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
) -> float:  # fmt: skip
    """Round the weights of all linear layers in place; return their share of the parameters.

    `editing` makes the parameters of a layer whole, as in `Workbench`.
    """
    rounded = 0
    for module in linears(model, options):
        with editing(module):
            weight = module.weight.detach()
            rows = weight.transpose(0, 1) if isinstance(module, Conv1D) else weight  # GPT-2 keeps [in, out]
            rows.copy_(rounding(rows))
            rounded += weight.numel()
    return rounded / elements(model.parameters())


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
