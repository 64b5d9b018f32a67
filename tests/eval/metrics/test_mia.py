from __future__ import annotations

import json
import math
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eval.collection.ragged import Ragged
from eval.metrics import mia
from tests.eval.eval_fixtures import needs_shared, tofu_set
from tests.paths import SHARED

nan = math.nan


def plain_auc(forget, holdout):
    """Every pair by itself."""
    pairs = [(f, h) for f in forget for h in holdout if not (math.isnan(f) or math.isnan(h))]
    return sum(1.0 if h > f else 0.5 if h == f else 0.0 for f, h in pairs) / len(pairs) if pairs else nan


def plain_tpr(forget, holdout, fpr):
    """The best of all thresholds, including the one that finds no member."""
    ours, theirs = (sorted(x for x in xs if not math.isnan(x)) for xs in (forget, holdout))
    if not ours or not theirs:
        return nan
    found = [0.0]
    for t in ours + theirs:
        if sum(h <= t for h in theirs) / len(theirs) <= fpr:
            found.append(sum(f <= t for f in ours) / len(ours))
    return max(found)


def plain_min_k(row, k):
    lowest = sorted(float(x) for x in row)[: max(1, int(k * len(row)))]
    return -math.fsum(lowest) / len(lowest) if len(row) else nan


def test_loss_and_reference_by_hand():
    # −(−1 − 3)/2 = 2, against 0.5 of the other model; an empty row cannot be measured.
    nll = mia.loss(Ragged.of([[-1.0, -3.0], []]))
    np.testing.assert_array_equal(nll, [2.0, nan])
    np.testing.assert_array_equal(mia.reference(nll, np.array([0.5, 0.5])), [1.5, nan])


def test_zlib_entropy_by_hand():
    # "aé" is three bytes in UTF-8. Header 2, checksum 4, and one block of 3 bits, a literal of 8 and two of 9
    # (bytes from 144 on) and 7 for its end: 36 bits in 5 bytes. 2 + 5 + 4 = 11.
    size = len(zlib.compress("aé".encode()))
    assert size == 11
    found = mia.zlib_entropy(Ragged.of([[-1.0, -3.0], [-1.0], []]), ["aé", "", "a"])
    np.testing.assert_array_equal(found, [2 / 11, nan, nan])
    with pytest.raises(ValueError, match="1 texts for 2 rows"):
        mia.zlib_entropy(Ragged.of([[-1.0], [-1.0]]), ["a"])


def test_a_text_that_repeats_itself_compresses_and_so_scores_higher():
    row = Ragged.of([[-1.0], [-1.0]])
    repeated, varied = mia.zlib_entropy(row, ["abcabcabc" * 20, "".join(map(chr, range(32, 32 + 180)))])
    assert repeated > varied


def test_min_k_by_hand():
    rows = Ragged.of([[-1.0, -5.0, -2.0, -3.0, -4.0], [-0.5, -2.5], [-7.0], [], [-1.0, nan]])
    # ⌊0.4·5⌋ = 2 lowest: −5 and −4; ⌊0.8⌋ and ⌊0.4⌋ are 0, so one; none of nothing; one is unknown.
    np.testing.assert_array_equal(mia.min_k(rows), [4.5, 2.5, 7.0, nan, nan])
    np.testing.assert_array_equal(mia.min_k(rows, 1.0), [3.0, 1.5, 7.0, nan, nan])
    for k in (0, 1.1):
        with pytest.raises(ValueError, match="share of tokens"):
            mia.min_k(rows, k)


def test_min_k_plus_plus_by_hand():
    logp = Ragged.of([[-1.0, -3.0, -2.0, -9.0, -2.0], [-1.5], []])
    mean = Ragged.of([[-2.0, -2.0, -1.0, -3.0, -2.0], [-2.0], []])
    variance = Ragged.of([[4.0, 1.0, 0.25, 9.0, 1.0], [0.25], []])
    # z: 1/2, −1/1, −1/.5 = −2, −6/3 = −2, 0; the two lowest are −2 and −2. Alone: .5/.5 = 1.
    np.testing.assert_array_equal(mia.min_k_plus_plus(logp, mean, variance), [2.0, -1.0, nan])
    with pytest.raises(ValueError, match="rows of variance are not as long"):
        mia.min_k_plus_plus(logp, mean, Ragged.of([[1.0], [1.0], []]))


@pytest.mark.parametrize("variance", [0.0, -1e-9, 1e-7, 1e-6])
def test_it_is_the_variance_that_is_kept_above_a_millionth(variance):
    # −0.002/√1e-6 = −2. Were it the standard deviation, −0.002/1e-6 = −2000 of a variance of 0.
    logp, mean, of = (Ragged.of([[x]]) for x in (-0.003, -0.001, variance))
    found = mia.min_k_plus_plus(logp, mean, of)
    assert found == pytest.approx(2.0, rel=1e-9)


@given(
    st.lists(st.lists(st.floats(-50, 0, width=32), max_size=12), max_size=5), st.sampled_from([0.1, 0.4, 1])
)
def test_scores_are_defined_as_they_say(rows, k):
    logp = Ragged.cut(
        np.array([x for row in rows for x in row], np.float32), np.array([*map(len, rows)], int)
    )
    mean = Ragged(logp.values * np.float32(0.5) - 1, logp.offsets)
    variance = Ragged(logp.values**2 * np.float32(0.1), logp.offsets)
    np.testing.assert_allclose(mia.min_k(logp, k), [plain_min_k(row, k) for row in rows], rtol=1e-12)
    z = [
        [(float(x) - float(m)) / math.sqrt(max(float(v), 1e-6)) for x, m, v in zip(*one, strict=True)]
        for one in zip(logp, mean, variance, strict=True)
    ]
    np.testing.assert_allclose(
        mia.min_k_plus_plus(logp, mean, variance, k), [plain_min_k(row, k) for row in z], rtol=1e-9, atol=1e-9
    )


FORGET, HOLDOUT = np.array([1.0, 2.0, 3.0, 4.0]), np.array([3.0, 6.0, 2.5, 5.0])


def test_auc_by_hand():
    # Of the 4·4 pairs, 2.5 exceeds 2 forget scores, 3 exceeds 2 and ties with one, 5 and 6 exceed 4 each.
    assert mia.auc(FORGET, HOLDOUT) == (2 + 2.5 + 4 + 4) / 16
    assert mia.auc(HOLDOUT, FORGET) == 1 - 12.5 / 16
    assert mia.auc(np.append(FORGET, nan), np.append(HOLDOUT, nan)) == 12.5 / 16
    assert mia.auc(FORGET, FORGET + 10) == 1  # remembered
    assert mia.auc(np.zeros(3), np.zeros(2)) == 0.5
    assert math.isnan(mia.auc(np.array([nan]), HOLDOUT))
    assert math.isnan(mia.auc(FORGET, np.array([])))


def test_found_members_by_hand():
    # No holdout example below t: t < 2.5 finds 1 and 2. One of four: t < 3 finds no more, as 3
    # ties with 3. Two of four: t < 5 finds all.
    rates = {fpr: mia.tpr_at_fpr(FORGET, HOLDOUT, fpr) for fpr in (0, 0.24, 0.25, 0.49, 0.5, 1)}
    assert rates == {0: 0.5, 0.24: 0.5, 0.25: 0.5, 0.49: 0.5, 0.5: 1, 1: 1}
    assert mia.tpr_at_fpr(HOLDOUT, FORGET, 0.75) == 0.5  # 2.5 and 3 lie below 4
    assert math.isnan(mia.tpr_at_fpr(FORGET, np.array([nan]), 0.1))
    with pytest.raises(ValueError, match=r"fpr=1\.5"):
        mia.tpr_at_fpr(FORGET, HOLDOUT, 1.5)


def test_a_rate_that_the_holdout_has_exactly_is_allowed():
    # 29 of 100 is 0.29, though 0.29·100 = 28.999999999999996 in float64.
    assert mia.tpr_at_fpr(np.arange(100) + 0.5, np.arange(100.0), 0.29) == 0.29


_SCORES = arrays(np.float64, st.integers(0, 9), elements=st.sampled_from([-1.0, 0.0, 0.5, 1.0, 2.0, nan]))


@given(_SCORES, _SCORES, st.sampled_from([0, 0.01, 0.1, 0.25, 1 / 3, 0.5, 1]))
def test_auc_and_rates_are_defined_as_they_say(forget, holdout, fpr):
    np.testing.assert_allclose(mia.auc(forget, holdout), plain_auc(forget, holdout), rtol=1e-14)
    assert mia.tpr_at_fpr(forget, holdout, fpr) == pytest.approx(plain_tpr(forget, holdout, fpr), nan_ok=True)


def test_the_same_as_scikit_learn():
    metrics = pytest.importorskip("sklearn.metrics")
    draw = np.random.default_rng(0)
    forget, holdout = draw.normal(size=57).round(1), draw.normal(0.7, size=83).round(1)  # with ties
    labels = np.repeat([0, 1], [57, 83])
    expected = metrics.roc_auc_score(labels, np.concatenate([forget, holdout]))
    assert mia.auc(forget, holdout) == pytest.approx(expected, rel=1e-14)


def test_the_interval_is_that_of_a_plain_bootstrap():
    draw = np.random.default_rng(3)
    forget, holdout = draw.normal(size=40).round(1), draw.normal(0.6, size=60).round(1)
    found = mia.bootstrap_interval(forget, holdout, resamples=4000)
    plain = [plain_auc(draw.choice(forget, 40), draw.choice(holdout, 60)) for _ in range(1000)]
    # Quantiles of 1000 draws with a standard deviation near 0.055 are known to about 0.055·2.6/√1000 = 0.005.
    np.testing.assert_allclose(found, np.quantile(plain, [0.025, 0.975]), atol=0.02)
    assert found[0] < mia.auc(forget, holdout) < found[1]
    narrow = mia.bootstrap_interval(forget, holdout, level=0.5, resamples=4000)
    assert found[0] < narrow[0] < narrow[1] < found[1]


def test_the_interval_follows_the_seed_and_leaves_out_what_was_not_measured():
    draw = np.random.default_rng(4)
    forget, holdout = draw.normal(size=50), draw.normal(size=50)
    once = mia.bootstrap_interval(forget, holdout, seed=1)
    assert once == mia.bootstrap_interval(np.append(forget, nan), holdout, seed=1)
    assert once != mia.bootstrap_interval(forget, holdout, seed=2)
    assert mia.bootstrap_interval(np.array([1.0]), np.array([2.0])) == (1, 1)
    assert np.isnan(mia.bootstrap_interval(np.array([nan]), holdout)).all()
    for wrong in ({"level": 1.0}, {"resamples": 0}):
        with pytest.raises(ValueError, match="resamples"):
            mia.bootstrap_interval(forget, holdout, **wrong)


def test_an_attack_holds_all_of_it():
    found = mia.attack(np.append(FORGET, nan), HOLDOUT)
    assert (found.n_forget, found.n_holdout) == (4, 4)
    assert found.auc == 12.5 / 16
    assert (found.low, found.high) == mia.bootstrap_interval(FORGET, HOLDOUT)
    assert found.tpr == {0.01: 0.5, 0.05: 0.5, 0.1: 0.5}
    nothing = mia.attack(np.array([]), HOLDOUT)
    assert (nothing.n_forget, nothing.n_holdout) == (0, 4)
    assert np.isnan([nothing.auc, nothing.low, nothing.high, *nothing.tpr.values()]).all()


def test_privacy_leak_by_hand():
    # s = 1 − .9 = .1 and r = 1 − .5 = .5: 100·(.1 − .5)/.5 = −80; over-unlearned: 100·(1 − .5)/.5 = 100.
    assert mia.privleak(0.9, 0.5) == pytest.approx(-80)
    assert mia.privleak(0.0, 0.5) == 100
    assert mia.privleak(0.7, 0.7) == 0
    # MUSE's news: its retrained model's constant .4772 and, for the target, an AUC of .0009 in its direction.
    # 100·(.0009 − .4772)/.4772 = −99.811
    assert mia.privleak(1 - 0.0009, 1 - 0.4772) == pytest.approx(-99.811, abs=5e-4)
    assert math.isnan(mia.privleak(0.5, 1.0))
    assert math.isnan(mia.privleak(nan, 0.5))
    assert math.isnan(mia.privleak(0.5, nan))


def test_closeness_by_hand():
    # 10^(−.6/.6) = .1, 10^(−.3/.6) = 10^−½ = .316228, on either side.
    assert mia.closeness(1.0, 0.4) == pytest.approx(0.1)
    assert mia.closeness(0.2, 0.5) == pytest.approx(0.316228, abs=1e-6)
    assert mia.closeness(0.8, 0.5) == pytest.approx(0.316228, abs=1e-6)
    assert mia.closeness(0.5, 0.5) == 1
    assert math.isnan(mia.closeness(nan, 0.5))


@pytest.fixture(scope="module")
def peer():
    return json.loads((SHARED / "peer" / "nano-tofu-full.TOFU_EVAL.json").read_text(encoding="utf-8"))


def peer_scores(peer, attack, name):
    found = peer[f"mia_{attack}"][name]["value_by_index"]
    return np.array([found[str(i)]["score"] for i in range(len(found))])


@needs_shared
@pytest.mark.parametrize("name", ["loss", "zlib", "min_k", "min_k_plus_plus", "reference", "gradnorm"])
def test_auc_of_the_peers_scores(peer, name):
    found = mia.auc(peer_scores(peer, name, "forget"), peer_scores(peer, name, "holdout"))
    assert found == pytest.approx(peer[f"mia_{name}"]["auc"], rel=1e-12)


@needs_shared
def test_zlib_entropy_of_the_peers_losses(peer):
    texts = [e.answer for e in tofu_set("forget", "forget10_perturbed")]
    rows = Ragged.of([[-nll] for nll in peer_scores(peer, "loss", "forget")])
    np.testing.assert_allclose(mia.zlib_entropy(rows, texts), peer_scores(peer, "zlib", "forget"), rtol=1e-6)


@needs_shared
def test_privacy_leak_of_the_peer(peer):
    # Its −100·r/(r + 1e-10) = −99.9999999845948 (Min-K AUC 1) comes of 1 − AUC_retain = r = .649132:
    # r/(r + 1e-10) = .999999999845948, r = 1e-10·.999999999845948/1.54052e-10.
    r = 0.649132
    assert -100 * r / (r + 1e-10) == pytest.approx(peer["privleak"]["agg_value"], abs=1e-12)
    assert mia.privleak(peer["mia_min_k"]["auc"], 1 - r) == pytest.approx(
        peer["privleak"]["agg_value"], abs=2e-8
    )
