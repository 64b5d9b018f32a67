"""The noise depends only on its key, and has a Gumbel distribution."""

from __future__ import annotations

import math

import pytest
import torch

from unlearn.passes.gumbel_sampling import gumbel

CPU = torch.device("cpu")


def test_noise_makes_samples_of_the_softmax() -> None:
    # 4000 keys, shares .1 .2 .3 .4: standard deviations of the counts √(4000·p·(1−p)) ≈ 19, 25, 29, 31.
    shares = torch.tensor([0.1, 0.2, 0.3, 0.4])
    for step in (0, 7):
        noise = gumbel([f"key {i}".encode() for i in range(4000)], step, 4, CPU)
        counts = (shares.log() + noise).argmax(-1).bincount(minlength=4)
        for count, share in zip(counts.tolist(), shares.tolist(), strict=True):
            assert abs(count - 4000 * share) < 4 * math.sqrt(4000 * share * (1 - share))


def test_noise_is_gumbels() -> None:
    noise = gumbel([b"a", b"b"], 0, 100_000, CPU)
    assert noise.dtype == torch.float32
    assert noise.isfinite().all()
    # Mean γ = 0.5772, variance π²/6 = 1.6449; the mean of 200,000 has the standard error √1.645/447 = 0.0029.
    assert noise.mean().item() == pytest.approx(0.5772, abs=0.012)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.05)
    # Rows, steps and neighbouring columns are not alike: standard error of a correlation 1/√100000 = 0.0032.
    later = gumbel([b"a"], 1, 100_000, CPU)[0]
    for other in (noise[1], later, noise[0].roll(1)):
        assert abs(torch.corrcoef(torch.stack([noise[0], other]))[0, 1].item()) < 0.013
    # A column's noise does not depend on how many there are, nor a row's on the others.
    assert torch.equal(gumbel([b"b"], 0, 10, CPU)[0], noise[1, :10])
