"""Metrics on trial: both definitions by hand, and the published verdicts on 22 metrics."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from eval.metrics.likelihood import harmonic_mean
from eval.metrics.meta import faithfulness, mean_of, quantisation, relearning, robustness, separating
from tests.eval.eval_fixtures import needs_shared
from tests.paths import SHARED

nan = math.nan


def row(*values: float) -> np.ndarray:
    return np.array(values)


def test_quantisation_by_hand():
    # .2 → .3: 1 − .1/.5; 0 → 0 and an equal value are unmoved; .3 → .1: 1 − .2/.4; −.2 → .2: 1 − .4/.4.
    before, after = row(0.2, 0.0, 0.4, 0.3, -0.2, nan), row(0.3, 0.0, 0.4, 0.1, 0.2, 0.5)
    np.testing.assert_allclose(quantisation(before, after), [0.8, 1, 1, 0.5, 0, nan])
    np.testing.assert_allclose(quantisation(before, after, "one_sided"), [1, 1, 1, 1 / 3, nan, nan])


def test_relearning_by_hand():
    # Gains .3 and .1: 1 − .2/.4, and .1/.3; no gain; the retain model gains more; it loses; ours loses.
    ours, theirs = row(0.3, 0.0, 0.1, 0.2, -0.1, nan), row(0.1, 0.0, 0.3, -0.1, 0.2, 0.1)
    zero = np.zeros(6)
    np.testing.assert_allclose(relearning(zero, ours, zero, theirs), [0.5, 1, 0.5, 0, 0, nan])
    one_sided = relearning(zero, ours, zero, theirs, "one_sided")
    np.testing.assert_allclose(one_sided, [1 / 3, 1, 1, 0, 1, nan])
    moved = relearning(zero + 0.5, ours + 0.5, zero + 0.2, theirs + 0.2)
    np.testing.assert_allclose(moved, relearning(zero, ours, zero, theirs), atol=1e-12)


def test_faithfulness_by_hand():
    # Of 3 × 2 pairs one is the wrong way round and one is tied: (4 + .5)/6.
    made = faithfulness(row(0.9, 0.5, 0.3, nan), row(0.4, 0.3))
    assert made.auc == pytest.approx(4.5 / 6)
    assert (made.known, made.unknown) == (3, 2)
    assert made.low <= made.auc <= made.high
    assert math.isnan(faithfulness(row(), row(0.3)).auc)
    assert math.isnan(faithfulness(row(0.9), row(0.4, 0.3)).low)
    apart = faithfulness(row(0.8, 0.9), row(0.1, 0.2))
    assert (apart.auc, apart.low, apart.high) == (1, 1, 1)
    assert apart.threshold == pytest.approx(0.5)


def test_the_interval_has_the_width_of_the_statistic():
    draws = np.random.default_rng(3)
    known, unknown = draws.normal(1, 1, 200), draws.normal(0, 1, 200)
    made = faithfulness(known, unknown)
    # Hanley and McNeil's standard error of an AUC a from n and m values.
    a, n, m = made.auc, 200, 200
    q1, q2 = a / (2 - a), 2 * a * a / (1 + a)
    error = math.sqrt((a * (1 - a) + (n - 1) * (q1 - a * a) + (m - 1) * (q2 - a * a)) / (n * m))
    assert (made.high - made.low) / (2 * 1.96 * error) == pytest.approx(1, abs=0.15)


def test_the_threshold_by_hand():
    assert separating(row(0.5, 0.7, 0.2), row(0.1, 0.3)) == pytest.approx(0.4)  # 2/3 + 1 against 1 + 1/2
    assert separating(row(0.4), row(0.4)) == 0.4
    assert math.isnan(separating(row(), row(0.4)))


def test_means_and_their_intervals():
    estimate = mean_of(row(0.2, nan, 0.8))
    assert (estimate.value, estimate.n) == (0.5, 2)
    assert (estimate.low, estimate.high) == (0.2, 0.8)
    assert math.isnan(mean_of(row(0.2)).low)
    assert mean_of(row(nan)).n == 0
    many = np.random.default_rng(0).uniform(size=400)
    wide = mean_of(many)
    assert (wide.high - wide.low) == pytest.approx(2 * 1.96 * many.std() / 20, rel=0.1)


def test_robustness_by_hand():
    made = robustness(row(0.5, 0.7), row(0.8, nan))
    assert made.value == pytest.approx(2 / (1 / 0.6 + 1 / 0.8))
    assert made.n == 1
    assert math.isnan(robustness(row(0.5), row(nan)).value)
    both = robustness(row(0.2, 0.6), row(0.4, 0.4))
    # All resamples of one model: HM(.2, .4) and HM(.6, .4).
    assert (both.low, both.high) == pytest.approx((2 / (5 + 2.5), 2 / (1 / 0.6 + 2.5)))


@needs_shared
def test_the_published_robustness_is_the_harmonic_mean_of_its_parts():
    published = json.loads((SHARED / "data" / "uds" / "meta_eval.json").read_text(encoding="utf-8"))
    assert len(published["robustness"]) == 22
    for each in published["robustness"].values():
        parts = np.array([each["relearning"], each["quantization"]])
        # Parts are rounded to 4 digits, and HM moves by at most twice as much as one of them.
        assert harmonic_mean(parts) == pytest.approx(each["agg"], abs=5e-5 + 2 * 5e-5)
    order = sorted(published["robustness"], key=lambda name: -published["robustness"][name]["agg"])
    assert order[:2] == ["uds", "logit_lens"]
