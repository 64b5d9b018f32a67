"""The parabola along the update and the rate that follows it."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearn.training.auto_lr import AutoLR, Fit, fit

FIVE = (-1.0, -0.5, 0.0, 0.5, 1.0)


def test_the_anchor_of_gen():
    # L = (w−1)², w = 3, d = L'(w) = 4, η = 0.1: probes at w ∓ 0.4
    # L(2.6) = 1.6² = 2.56, L(3) = 4, L(3.4) = 2.4² = 5.76
    # b = (L₊ − L₋)/2 = 1.6, a = L₊ − 2L₀ + L₋ = 0.32, x* = b/a = 5, η* = 0.1 · 5 = 0.5; and 3 − 0.5·4 = 1
    found = fit([2.56, 4.0, 5.76])
    assert found.a == pytest.approx(0.32)
    assert found.b == pytest.approx(1.6)
    assert found.r2 == pytest.approx(1.0)
    assert 0.1 * found.best == pytest.approx(0.5)


@given(
    w=st.floats(-5, 5), low=st.floats(-5, 5), curvature=st.floats(0.1, 10), rate=st.floats(1e-3, 0.09),
    multipliers=st.sampled_from([(-1.0, 0.0, 1.0), (1.0, -1.0, 0.0), FIVE, (-2.0, 0.0, 0.5)]),
)  # fmt: skip
def test_on_a_quadratic_the_best_rate_is_the_inverse_curvature(w, low, curvature, rate, multipliers):
    # L = ½c(w − l)² has η* = d²/(c·d²) = 1/c whatever the point and the probe, given a slope
    if abs(w - low) < 1e-2:
        return
    slope = curvature * (w - low)
    losses = [0.5 * curvature * (w + m * rate * slope - low) ** 2 for m in multipliers]
    found = fit(losses, multipliers)
    assert rate * found.best == pytest.approx(1 / curvature, rel=1e-5)
    assert found.r2 == pytest.approx(1.0)


def test_r2_by_hand():
    # Multipliers −2, −1, 0, 1, 2 and differences 2, −1, 0, 1, 2 with x = 2, 1, −1, −2:
    # even part ½a·x²: Σ x²/2 · difference = 2·2 − ½ + ½ + 2·2 = 8, Σ x⁴/4 = 4 + ¼ + ¼ + 4 = 8.5, a = 16/17
    # odd part −b·x: Σ −x·difference = −4 + 1 + 1 + 4 = 2, Σ x² = 10, b = 0.2
    # explained 8²/8.5 + 2²/10 of Σ difference² = 10: (7.529412 + 0.4)/10
    found = fit([12.0, 9.0, 10.0, 11.0, 12.0], (-2, -1, 0, 1, 2))
    assert found.a == pytest.approx(16 / 17)
    assert found.b == pytest.approx(0.2)
    assert found.r2 == pytest.approx(0.7929412, abs=1e-7)


def test_three_probes_are_always_explained_and_none_where_nothing_changes():
    assert fit([0.3, 7.0, -2.0]).r2 == pytest.approx(1.0)
    assert fit([4.0, 4.0, 4.0]) == Fit(0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("losses", "why"),
    [
        ([3.0, 4.0, 4.5], "concave: a = 4.5 − 8 + 3 < 0"),
        ([5.0, 4.0, 3.5], "the update goes up: b = (3.5 − 5)/2 < 0"),
        ([3.0, 4.0, 5.0], "a line: a = 0"),
        ([4.0, 4.0, 4.0], "flat"),
    ],
)
def test_a_rejected_fit_changes_nothing(losses, why):
    auto = AutoLR(lr=0.1, every=10)
    assert auto.update(losses) == 0.1, why
    assert auto.log()["autolr/accepted"] == 0.0
    assert math.isnan(auto.log()["autolr/proposed"])


@pytest.mark.parametrize("losses", [[math.nan, 4.0, 5.0], [3.0, 4.0, math.inf]], ids=str)
def test_where_there_is_nothing_to_fit_the_rate_is_halved(losses):
    auto = AutoLR(lr=0.1, every=10)
    assert auto.update(losses) == 0.05
    assert auto.log()["autolr/accepted"] == 0.0
    assert math.isnan(auto.log()["autolr/proposed"])


def test_noise_is_rejected_by_five_probes():
    noise = np.random.default_rng(0).normal(size=(200, 5))
    auto = AutoLR(lr=0.1, every=1, multipliers=FIVE)
    accepted = 0.0
    for row in noise:
        auto.update(list(row))
        accepted += auto.log()["autolr/accepted"]
    assert accepted <= 4  # of 200; a convex and falling parabola alone would pass a quarter
    clean = AutoLR(lr=0.1, every=1, multipliers=FIVE)
    clean.update([(3 + m * 0.4 - 1) ** 2 for m in FIVE])
    assert clean.log()["autolr/accepted"] == 1.0


def test_smoothing_and_clamping_by_hand():
    auto = AutoLR(lr=0.1, every=10)
    # The anchor proposes 0.5, clamped to 2·0.1: 0.9·0.1 + 0.1·0.2 = 0.11
    assert auto.update([2.56, 4.0, 5.76]) == pytest.approx(0.11)
    assert auto.log() == pytest.approx(
        {
            "autolr/lr": 0.11, "autolr/proposed": 0.5, "autolr/a": 0.32, "autolr/b": 1.6, "autolr/r2": 1.0,
            "autolr/accepted": 1.0,
        }
    )  # fmt: skip
    # a = 4, b = 1: x* = ¼, below ½: 0.9·0.11 + 0.1·0.055 = 0.1045
    assert auto.update([1.0 + 1.0, 1.0, 1.0 + 3.0]) == pytest.approx(0.1045)
    # Neither bound, no smoothing, scaled: a = 2, b = 3, x* = 1.5: 0.5 · 1.5 · 0.2 = 0.15
    assert AutoLR(0.2, 1, smooth=0.0, scale=0.5).update([-2.0, 0.0, 4.0]) == pytest.approx(0.15)


def test_when_it_is_due():
    assert [step for step in range(25) if AutoLR(0.1, 10).due(step)] == [0, 10, 20]


def test_state_goes_through_json():
    auto = AutoLR(lr=0.1, every=10)
    auto.update([2.56, 4.0, 5.76])
    resumed = AutoLR(lr=0.1, every=10)
    resumed.load(json.loads(json.dumps(auto.state())))
    assert resumed.update([1.0, 2.0, 4.0]) == auto.update([1.0, 2.0, 4.0])
    assert resumed.log() == auto.log()


@pytest.mark.parametrize("multipliers", [(-1.0, 1.0), (-1.0, 1.0, 2.0), (0.0, 1.0), (0.0, 0.0, 1.0)], ids=str)
def test_probes_that_fit_no_parabola_are_refused(multipliers):
    with pytest.raises(ValueError, match="exactly one multiplier 0"):
        fit([1.0] * len(multipliers), multipliers)
    with pytest.raises(ValueError, match="2 losses at"):
        fit([1.0, 2.0])


def test_settings_without_sense_are_refused():
    with pytest.raises(ValueError, match=r"AutoLR with lr=0, clip=0.5: "):
        AutoLR(lr=0, every=1, clip=0.5)
