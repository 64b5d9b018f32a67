"""Weights in the 4-bit formats that models are loaded in: blocks with a scale each, and 16 values.

A block is a run of the flattened weight; its scale is its largest magnitude, and each weight becomes the
nearest value times the scale. The formats are those of bitsandbytes (QLoRA, arXiv 2305.14314): nf4 has the
quantiles of a normal distribution, fp4 a sign, two bits of exponent and one of mantissa. Scales are fp32, not
rounded themselves, as is the library's default.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Format = Literal["nf4", "fp4"]

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941,
    0.7229568362236023, 1.0,
)  # fmt: skip
FP4_MAGNITUDES = (0.0, 1 / 192, 1 / 6, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1.0)


def coded(weight: Tensor, kind: Format, block: int = 64) -> Tensor:
    """Return a weight [out, in] with the values of a format, fp32; the last block may be shorter.

    Halves between two values go to the lower one, in fp4 to the smaller magnitude.
    """
    flat = weight.float().reshape(-1)
    blocks = nn.functional.pad(flat, (0, -len(flat) % block)).view(-1, block)  # zeros change no maximum
    scale = blocks.abs().amax(-1, keepdim=True)
    share = blocks / torch.where(scale > 0, scale, 1.0)
    near = _nearest(share, NF4) if kind == "nf4" else share.sign() * _nearest(share.abs(), FP4_MAGNITUDES)
    return (near * scale).view(-1)[: len(flat)].view(weight.shape)


def _nearest(values: Tensor, codes: tuple[float, ...]) -> Tensor:
    known = torch.tensor(codes, device=values.device)
    return known[torch.bucketize(values, (known[1:] + known[:-1]) / 2)]
