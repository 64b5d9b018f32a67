"""Sampling that does not depend on batching, order or number of processes, beyond rounding of the model.

A sample is the arg-max of the scores plus Gumbel noise. The noise is a hash of (key, token position, token).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor

from unlearn.passes.generate import Perturb

_LOW32 = 0xFFFFFFFF


def sampling(keys: Sequence[bytes], temperature: float) -> Perturb:
    """Return a function that adds the noise of `keys[i]` to the scores of prompt i.

    The arg-max of its result is a sample at this temperature.
    """

    def perturb(rows: Sequence[int], step: int, scores: Tensor) -> Tensor:
        return scores + temperature * gumbel([keys[i] for i in rows], step, scores.shape[-1], scores.device)

    return perturb


def gumbel(keys: Sequence[bytes], step: int, width: int, device: torch.device) -> Tensor:
    """Return standard Gumbel noise fp32 [keys, width], which depends only on key, step and column."""
    words = [_words(key, step) for key in keys]
    first, second = torch.tensor(words, device=device).T[:, :, None]
    bits = _mixed(_mixed(torch.arange(width, device=device) + first & _LOW32) ^ second)
    # Small uniform values are exact in fp32, so the large noise values are computed from these.
    uniform = ((bits.float() + 0.5) * 2.0**-32).clamp(max=1 - 2.0**-24)
    return -(-torch.log1p(-uniform)).log()


def _words(key: bytes, step: int) -> tuple[int, int]:
    digest = hashlib.blake2b(key, digest_size=8, salt=step.to_bytes(8, "little")).digest()
    return int.from_bytes(digest[:4], "little"), int.from_bytes(digest[4:], "little")


def _mixed(bits: Tensor) -> Tensor:
    """Hash 32 bits to 32 bits, in int64 (constants: Wellons, hash-prospector, two rounds)."""
    bits = (bits ^ (bits >> 16)) * 0x21F0AAAD & _LOW32
    bits = (bits ^ (bits >> 15)) * 0xD35A2D97 & _LOW32
    return bits ^ (bits >> 15)
