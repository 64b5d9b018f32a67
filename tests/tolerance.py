"""Tolerances that follow from the number format, the size of the numbers and how many are summed.

Every operation rounds by up to half of eps, either way, so the error of n operations grows as √n. Processors,
kernels and threads only choose another order of the same operations. A result may differ by

    8 · eps(dtype) · √terms · condition · scale

from its reference: in float64, by hand, or the same by another way in the same format. CONTRIBUTING.md says
how the four are chosen.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

FACTOR = 8
PASS = 256
"""Terms of a forward or backward pass of the tests' models: sums of 16 to 100, through up to 16 matrices."""


def relative(dtype: torch.dtype = torch.float32, terms: float = 1, condition: float = 1) -> float:
    """Return the tolerance of a result of magnitude one."""
    return FACTOR * torch.finfo(dtype).eps * math.sqrt(terms) * condition


def approx(
    expected: Any,
    *,
    terms: float = 1,
    dtype: torch.dtype = torch.float32,
    scale: float = 0,
    condition: float = 1,
    decimals: int | None = None,
) -> Any:
    """Return what equals a Python number, or a list or mapping of them, computed in `dtype`.

    Each number is its own scale, unless `scale` is larger. `expected` may be written with so many `decimals`.
    """
    share = relative(dtype, terms, condition)
    return pytest.approx(expected, rel=share, abs=share * scale + _rounded(decimals), nan_ok=True)


def assert_close(
    actual: Any,
    expected: Any,
    *,
    terms: float = 1,
    dtype: torch.dtype | None = None,
    scale: float = 0,
    condition: float = 1,
    each: bool = False,
    rounded: float = 0,
    decimals: int | None = None,
    named: str = "",
) -> None:
    """Compare tensors, arrays or lists, or mappings of them, of which every one has its own scale.

    By default `dtype` is the coarser one of the two. The scale is `scale`, or the largest finite magnitude
    expected if that is larger. With `each` it is every number's own, for functions of single numbers.
    `rounded` is a share of each number on top: half of the eps of a coarser format in which it was stored.

    Raises:
        AssertionError: a number differs by more, and by more than the format's least normal number;
            one of the two is NaN or infinite; shapes or keys differ.
    """
    if isinstance(expected, Mapping):
        assert actual.keys() == expected.keys(), named
        for key, value in expected.items():
            assert_close(
                actual[key], value, terms=terms, dtype=dtype, scale=scale, condition=condition, each=each,
                rounded=rounded, decimals=decimals, named=f"{named} {key}",
            )  # fmt: skip
        return
    computed, wanted = _tensor(actual), _tensor(expected)
    dtype = dtype or _coarser(computed, wanted)
    share = relative(dtype, terms, condition)
    wanted = wanted.double()
    finite = wanted[wanted.isfinite()].abs()
    if finite.numel() and not each:
        scale = max(scale, float(finite.max()))
    torch.testing.assert_close(
        computed.double(), wanted, equal_nan=True, rtol=(share if each else 0) + rounded,
        atol=share * scale + _rounded(decimals) + torch.finfo(dtype).tiny,
        msg=lambda text: f"{named}: {text}" if named else text,
    )  # fmt: skip


def assert_trained_alike(
    actual: Mapping[str, Tensor], expected: Mapping[str, Tensor], *, lr: float, steps: int, named: str = ""
) -> None:
    """Compare weights after steps of AdamW in fp32 that were computed in another order.

    AdamW divides a gradient by its size. Where that is nearer to zero than a share e of the others', which a
    share e of them are, rounding decides the sign: the root mean square of the difference is √e of what was
    moved, and the largest two steps of lr each time.

    Raises:
        AssertionError: names the root mean square and the greatest difference.
    """
    assert actual.keys() == expected.keys(), named
    difference = torch.cat([(actual[name].double() - expected[name].double()).flatten() for name in expected])
    mean, largest = float(difference.square().mean().sqrt()), float(difference.abs().max())
    far = lr * steps
    assert mean <= math.sqrt(relative()) * far, f"{named}: root mean square {mean}, moved by up to {far}"
    assert largest <= 2 * far, f"{named}: differs by {largest}, moved by up to {far}"


def swapped(first: Any, second: Any, tolerance: float) -> float:
    """Return the share of pairs of the two samples that are nearer than `tolerance`, which rounding may order
    either way: by so much an area under a curve of ranks may differ."""
    difference = np.abs(np.subtract.outer(np.asarray(first, float), np.asarray(second, float)))
    return float((difference <= tolerance).mean())


def _tensor(values: Any) -> Tensor:
    return values.detach() if isinstance(values, Tensor) else torch.from_numpy(np.array(values))


def _coarser(*tensors: Tensor) -> torch.dtype:
    kinds = [tensor.dtype for tensor in tensors if tensor.dtype.is_floating_point]
    return max(kinds, key=lambda kind: torch.finfo(kind).eps)


def _rounded(decimals: int | None) -> float:
    return 0.0 if decimals is None else 0.51 * 10.0**-decimals
