"""The unlearning depth score from drops, by hand and by a plain loop; aggregates of published results."""

from __future__ import annotations

import json

import numpy as np
import pytest

from eval.metrics.depth import depth_score, encoding, erased_share, over_encoding
from eval.metrics.likelihood import harmonic_mean
from tests.eval.eval_fixtures import needs_shared
from tests.paths import SHARED

RETAIN = np.array([[0.02, 0.5, 1.0]])
UNLEARNED = np.array([[0.3, 0.25, 1.2]])


def test_the_score_by_hand():
    # Blocks 2 and 3 encode: shares 0.25/0.5 and 1 (1.2 is cut off), (0.5·0.5 + 1·1)/1.5; unweighted 0.75.
    assert depth_score(RETAIN, UNLEARNED) == pytest.approx([1.25 / 1.5])
    assert encoding(RETAIN).tolist() == [[False, True, True]]
    share = erased_share(RETAIN, UNLEARNED)
    assert share.tolist() == [[1.0, 0.5, 1.0]]
    assert share[encoding(RETAIN)].mean() == 0.75
    # With a threshold of 0 the first block counts as well: (0.02 + 0.25 + 1)/1.52.
    assert depth_score(RETAIN, UNLEARNED, 0) == pytest.approx([1.27 / 1.52])


def test_the_ends_of_the_scale():
    assert depth_score(RETAIN, np.zeros((1, 3))).tolist() == [0.0]  # the target itself
    assert depth_score(RETAIN, RETAIN).tolist() == [1.0]
    assert depth_score(RETAIN, -UNLEARNED).tolist() == [0.0]  # states that make the answer likelier
    assert np.isnan(depth_score(np.full((1, 3), 0.05), UNLEARNED))  # no block exceeds the threshold
    assert np.isnan(depth_score(np.full((1, 3), np.nan), UNLEARNED))
    assert np.isnan(depth_score(RETAIN, np.full((1, 3), np.nan)))


def test_what_is_no_drop_is_refused():
    with pytest.raises(ValueError, match="same blocks"):
        depth_score(RETAIN, UNLEARNED[:, :2])
    with pytest.raises(ValueError, match="threshold=-1"):
        depth_score(RETAIN, UNLEARNED, -1)


def test_the_score_equals_a_plain_loop():
    rng = np.random.default_rng(0)
    first, second = rng.normal(0.2, 0.5, (50, 7)), rng.normal(0.2, 0.5, (50, 7))
    expected = []
    for one, other in zip(first, second, strict=True):
        total = weight = 0.0
        for d1, d2 in zip(one, other, strict=True):
            if d1 > 0.1:
                total += d1 * min(max(d2 / d1, 0), 1)
                weight += d1
        expected.append(total / weight if weight else np.nan)
    assert depth_score(first, second, 0.1) == pytest.approx(expected, nan_ok=True)


def test_means_of_a_block_over_the_examples_it_encodes():
    values = np.array([[0.2, 0.4], [0.6, 0.8]])
    encoded = np.array([[True, False], [True, False]])
    means = over_encoding(values, encoded)
    assert means[0] == pytest.approx(0.4)
    assert np.isnan(means[1])


@needs_shared
def test_published_aggregates_follow_from_their_parts():
    """150 unlearned models of the score's authors, the target and the retain model; zeros as 1e-12."""
    models = json.loads((SHARED / "data/uds/method_results.json").read_text())["models"]
    parts = {
        "mem": ("one_minus_es", "one_minus_em", "one_minus_paraprob", "one_minus_truth"),
        "privacy_mia": ("s_loss", "s_zlib", "s_mink", "s_minkpp"),
        "privacy": ("privacy_mia", "uds"),
        "utility": ("model_utility", "fluency"),
        "overall": ("mem", "privacy", "utility_rel"),
    }
    assert len(models) == 152
    for one in models:
        for whole, names in parts.items():
            values = np.maximum([one[name] for name in names], 1e-12)
            assert harmonic_mean(values) == pytest.approx(one[whole], abs=1e-11), (one["model"], whole)
    ends = {one["model"]: [one["uds"], one["logit_lens"]] for one in models if one["is_reference"]}
    assert ends["full"] == [0, 0]
    assert ends["retain"] == pytest.approx([1, 1], abs=1e-7)  # their lens divides by a little more


@needs_shared
def test_published_robustness_is_a_harmonic_mean():
    verdicts = json.loads((SHARED / "data/uds/meta_eval.json").read_text())["robustness"]
    assert len(verdicts) > 20
    for name, one in verdicts.items():
        pair = np.array([one["relearning"], one["quantization"]])
        # Each is written with four decimals; the mean moves by up to four times as much as the smaller one.
        assert harmonic_mean(pair) == pytest.approx(one["agg"], abs=5 * 5e-5), name
