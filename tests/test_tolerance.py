"""The tolerance of tests: it scales as it says, and nothing larger passes."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tests.tolerance import approx, assert_close, relative, swapped


def test_it_grows_with_the_format_the_root_of_the_terms_and_the_condition():
    assert relative() == 8 * 2.0**-23
    assert relative(torch.float64, terms=4) == 16 * 2.0**-52
    assert relative(torch.bfloat16, condition=3) == 24 * 2.0**-7


@pytest.mark.parametrize(("off", "passes"), [(0.9, True), (1.1, False)])
def test_the_scale_is_the_largest_of_all_or_of_each(off, passes):
    wanted = torch.tensor([1e-3, -4.0, math.nan], dtype=torch.float64)
    allowed = relative(torch.float32, 9)
    for scale, options in ((4.0, {}), (50.0, {"scale": 50.0}), (1e-3, {"each": True})):
        actual = wanted + torch.tensor([off * allowed * scale, 0, 0], dtype=torch.float64)
        if passes:
            assert_close({"a": actual}, {"a": wanted}, terms=9, dtype=torch.float32, **options)
        else:
            with pytest.raises(AssertionError, match="a: "):
                assert_close({"a": actual}, {"a": wanted}, terms=9, dtype=torch.float32, **options)
    assert (4.0 * (1 + off * allowed) == approx(4.0, terms=9)) is passes
    assert (off * allowed * 50 == approx(0.0, terms=9, scale=50)) is passes
    assert (0.25 + off * 5e-4 == approx(0.25, decimals=3)) is passes


def test_the_coarser_format_counts():
    for other in (torch.float64, torch.float32):
        assert_close(torch.ones(2).bfloat16() + 2.0**-7, torch.ones(2, dtype=other))
        with pytest.raises(AssertionError):
            assert_close(torch.ones(2) + 2.0**-7, torch.ones(2, dtype=other))


def test_other_shapes_keys_and_what_is_not_finite_differ():
    for actual, expected in (
        (np.ones(2), np.ones(3)), ({"a": 1.0}, {"b": 1.0}), ([math.nan], [1.0]), ([1.0], [math.inf])
    ):  # fmt: skip
        with pytest.raises(AssertionError):
            assert_close(actual, expected)


def test_pairs_that_rounding_may_swap():
    assert swapped([0.0, 1.0], [1.001, 5.0], 0.01) == 1 / 4
