from __future__ import annotations

import math
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eval.collection.ragged import Ragged
from eval.metrics.likelihood import (
    TruthRatioForm,
    closeness_to_one,
    exact_memorization,
    extraction_strength,
    forget_quality,
    harmonic_mean,
    log_truth_ratio,
    mean,
    mean_nll,
    option_probability,
    perplexity,
    probability,
    truth_preference,
    truth_probability,
    without_end,
)


def test_probability_counts_every_recorded_token():
    # log p of (1/2, 1/8) averages to log(1/4); an empty answer cannot be measured.
    nll = mean_nll(Ragged.of([[math.log(0.5), math.log(0.125)], [], [math.log(0.9)]]))
    np.testing.assert_allclose(probability(nll), [0.25, math.nan, 0.9], rtol=1e-12)


def test_perplexity_by_hand():
    # (1 + 3 + 2)/3 tokens = 2 nats: e². The mean over rows would be e^((2 + 2)/2), of other rows another.
    assert perplexity(Ragged.of([[-1.0, -3.0], [], [-2.0]])) == pytest.approx(math.exp(2))
    # (4 + 4 + 1)/3 = 3: long rows count more; by rows it were e^((4 + 1)/2).
    assert perplexity(Ragged.of([[-4.0, -4.0], [-1.0]])) == pytest.approx(math.exp(3))
    assert math.isnan(perplexity(Ragged.of([[], []])))
    assert math.isnan(perplexity(Ragged.of([])))
    assert perplexity(Ragged.of([[-2000.0]])) == sys.float_info.max


_ROWS = st.lists(st.lists(st.floats(-60, 0, width=32), max_size=6), max_size=5)


@given(_ROWS)
def test_perplexity_is_defined_as_it_says(rows):
    logp = Ragged.cut(
        np.array([x for row in rows for x in row], np.float32), np.array([*map(len, rows)], int)
    )
    total, n = math.fsum(float(x) for row in rows for x in row), sum(map(len, rows))
    assert perplexity(logp) == pytest.approx(math.exp(-total / n) if n else math.nan, nan_ok=True)


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        # p̄ = exp(−(2 + 3 + 4)/3) = e⁻³ over p = e⁻¹: e⁻²
        ("geometric", 0.135335),
        # p̄ = (e⁻² + e⁻³ + e⁻⁴)/3 = (.135335 + .049787 + .018316)/3 = .067813 over .367879
        ("arithmetic", 0.184334),
    ],
)
def test_truth_ratio_by_hand(form, expected):
    ratio = np.exp(log_truth_ratio(np.array([1.0]), Ragged.of([[2.0, 3.0, 4.0]]), form))
    assert ratio == pytest.approx(expected, abs=5e-7)


def test_truth_ratio_of_vanishing_probabilities_is_not_zero_by_zero():
    # exp(−900) and exp(−1000) are both 0 in float64; R = exp(900 − 1000) = e⁻¹⁰⁰.
    for form in ("geometric", "arithmetic"):
        log_ratio = log_truth_ratio(np.array([900.0]), Ragged.of([[1000.0, 1000.0]]), form)
        assert log_ratio == pytest.approx(-100.0)
        assert closeness_to_one(log_ratio) == pytest.approx(math.exp(-100))
    # The other way round R overflows; nothing is preferred, nothing is close to one, nothing is NaN.
    log_ratio = log_truth_ratio(np.array([2000.0]), Ragged.of([[1.0]]))
    assert closeness_to_one(log_ratio) == 0
    assert truth_preference(log_ratio) == 0


def test_truth_ratio_without_perturbed_answers_is_not_measurable():
    for form in ("geometric", "arithmetic"):
        assert np.isnan(log_truth_ratio(np.array([1.0]), Ragged.of([[]]), form)).all()
        assert np.isnan(log_truth_ratio(np.array([math.nan]), Ragged.of([[1.0]]), form)).all()


def test_truth_ratio_of_an_unknown_form_is_refused():
    with pytest.raises(ValueError, match="'geometric' or 'arithmetic'"):
        log_truth_ratio(np.array([1.0]), Ragged.of([[1.0]]), "harmonic")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("form", "expected"),
    [
        ("geometric", 0.880797),  # 1/(1 + e⁻²) = 1/1.135335
        ("arithmetic", 0.844356),  # e⁻¹/(e⁻¹ + .067813) = .367879/.435692 = 1/(1 + .184334)
    ],
)
def test_truth_probability_by_hand(form, expected):
    found = truth_probability(np.array([1.0, 1.0]), Ragged.of([[2.0, 3.0, 4.0], []]), form)
    np.testing.assert_allclose(found, [expected, math.nan], atol=5e-7)


def test_truth_probability_of_vanishing_probabilities():
    # e⁻⁹⁰⁰ against e⁻⁹⁰¹, both 0 in float64: 1/(1 + e⁻¹) = .731059. Far away from each other: 1 and 0.
    found = truth_probability(np.array([900.0, 1.0, 5000.0]), Ragged.of([[901.0], [5000.0], [1.0]]))
    np.testing.assert_allclose(found, [0.731059, 1, 0], atol=5e-7)


_NLL = st.floats(0, 30)


@given(_NLL, st.lists(_NLL, min_size=1, max_size=5))
def test_truth_probability_is_defined_as_it_says(true, wrong):
    p = math.exp(-true)
    wrongs: dict[TruthRatioForm, float] = {
        "geometric": math.exp(-math.fsum(wrong) / len(wrong)),
        "arithmetic": math.fsum(math.exp(-x) for x in wrong) / len(wrong),
    }
    for form, p_wrong in wrongs.items():
        found = truth_probability(np.array([true]), Ragged.of([wrong]), form)
        assert found == pytest.approx(p / (p + p_wrong), rel=1e-9)


def test_summaries_of_the_truth_ratio():
    log_ratio = np.log([0.25, 1.0, 4.0])
    np.testing.assert_allclose(closeness_to_one(log_ratio), [0.25, 1.0, 0.25])
    np.testing.assert_allclose(truth_preference(log_ratio), [0.75, 0.0, 0.0])


def test_option_probability_by_hand():
    # p = .5 against .25 and .25: ½. Alone against NaN-free nothing: not measurable.
    found = option_probability(np.log([2.0, 2.0]), Ragged.of([np.log([4.0, 4.0]), []]))
    np.testing.assert_allclose(found, [0.5, math.nan])
    # e⁻¹⁰⁰⁰ against e⁻¹⁰⁰⁰: ½, though both are 0 in float64.
    np.testing.assert_allclose(option_probability(np.array([1000.0]), Ragged.of([[1000.0]])), [0.5])


# Tokens right (1) or wrong (0), whether the last is the end token; extraction strength, exact memorisation.
ANSWERS = [
    ("11111", True, 1, 1),
    ("11110", True, 1, 1),  # the words are all there, only the end is not: it does not count
    ("11101", True, 0, 3 / 4),  # no end of the words is right, though the end token is
    ("01111", True, 3 / 4, 3 / 4),
    ("10101", True, 0, 1 / 2),
    ("00011", True, 1 / 4, 1 / 4),
    ("01011", True, 1 / 4, 1 / 2),  # 1 of 4 at the end, 2 of 4 in all
    ("00001", True, 0, 0),
    ("11", True, 1, 1),
    ("01", True, 0, 0),
    ("1", True, math.nan, math.nan),  # nothing but the end token
    ("", False, math.nan, math.nan),
    # Cut off: the last token is a word like the others.
    ("1111", False, 1, 1),
    ("1110", False, 0, 3 / 4),
    ("01111", False, 4 / 5, 4 / 5),
    ("1", False, 1, 1),
    ("0", False, 0, 0),
]


def tokens(*answers):
    return Ragged.cut(np.array([c == "1" for a in answers for c in a], bool), np.array([*map(len, answers)]))


def test_memorization_by_hand():
    answers, ended, strength, exact = zip(*ANSWERS, strict=True)
    np.testing.assert_array_equal(extraction_strength(tokens(*answers), np.array(ended)), strength)
    np.testing.assert_array_equal(exact_memorization(tokens(*answers), np.array(ended)), exact)
    assert extraction_strength(tokens(), np.array([], bool)).shape == (0,)
    assert exact_memorization(tokens(), np.array([], bool)).shape == (0,)


def test_memorization_needs_to_know_of_every_answer_whether_it_ended():
    for metric in (extraction_strength, exact_memorization):
        with pytest.raises(ValueError, match="2 answers, and of 1 it is known"):
            metric(tokens("11", "11"), np.array([True]))


def test_the_end_token_is_left_out_where_there_is_one():
    found = without_end(Ragged.of([[1.0, 2.0], [3.0, 4.0], [5.0], []]), np.array([True, False, True, False]))
    assert [row.tolist() for row in found] == [[1], [3, 4], [], []]


_ANSWERS = st.lists(st.tuples(st.text("01", min_size=1, max_size=12), st.booleans()), max_size=6)


@given(_ANSWERS)
def test_memorization_is_bounded_and_defined_as_it_says(answers):
    texts, ended = [text for text, _ in answers], np.array([end for _, end in answers], bool)
    strength, exact = (f(tokens(*texts), ended) for f in (extraction_strength, exact_memorization))
    for i, (text, end) in enumerate(answers):
        words = text[:-1] if end else text
        if not words:
            assert math.isnan(strength[i])
            assert math.isnan(exact[i])
            continue
        assert 0 <= strength[i] <= exact[i] <= 1
        assert (strength[i] == 1) == (exact[i] == 1)
        assert (strength[i] == 0) == (words[-1] == "0")
        assert strength[i] == max(k for k in range(len(words) + 1) if words.endswith("1" * k)) / len(words)
        assert exact[i] == words.count("1") / len(words)


@given(st.text("01", min_size=2, max_size=12), st.booleans(), st.data())
def test_memorization_rises_when_a_token_becomes_right(text, end, data):
    place = data.draw(st.integers(0, len(text) - 1))
    better = text[:place] + "1" + text[place + 1 :]
    counted, ended = len(text) - end, np.array([end, end])
    for metric in (extraction_strength, exact_memorization):
        before, after = metric(tokens(text, better), ended)
        assert after >= before
    before, after = extraction_strength(tokens(text, better), ended)
    if place < counted and text[place] == "0":
        exact_before, exact_after = exact_memorization(tokens(text, better), ended)
        assert exact_after > exact_before
        # It counts as soon as everything after it is right, and with it the right ones before it.
        assert (after > before) == all(c == "1" for c in text[place + 1 : counted])
    else:
        assert after == before


def test_mean_skips_what_could_not_be_measured():
    assert mean(np.array([1.0, math.nan, 2.0])) == 1.5
    assert math.isnan(mean(np.array([math.nan])))
    assert math.isnan(mean(np.array([])))


def test_harmonic_mean():
    # 3 / (1/1 + 1/0.5 + 1/0.25) = 3/7
    assert harmonic_mean(np.array([1.0, 0.5, 0.25])) == pytest.approx(3 / 7)
    assert harmonic_mean(np.array([1.0, 0.0])) == 0
    assert math.isnan(harmonic_mean(np.array([0.0, math.nan])))
    assert math.isnan(harmonic_mean(np.array([])))


def test_forget_quality_by_hand():
    # Two against two, fully separated: D = 1. Of the C(4, 2) = 6 orders 2 are that extreme: p = 1/3.
    quality = forget_quality(np.array([0.0, 1.0, math.nan]), np.array([2.0, 3.0]))
    assert quality.statistic == 1
    assert quality.p == pytest.approx(1 / 3)
    assert quality.log10_p == pytest.approx(math.log10(1 / 3))
    assert (quality.n1, quality.n2) == (2, 2)


def test_forget_quality_of_the_same_numbers_is_one():
    values = np.linspace(-2, 2, 40)
    assert forget_quality(values, values).p == 1


def test_forget_quality_of_nothing_is_not_measurable():
    quality = forget_quality(np.array([math.nan]), np.array([1.0]))
    assert math.isnan(quality.p)
    assert (quality.n1, quality.n2) == (0, 1)


def test_log_of_a_p_value_too_small_for_a_float():
    quality = forget_quality(np.arange(2000.0), np.arange(2000.0) + 5000)
    assert quality.p == 0
    # log10 2 − 2·1²·(2000·2000/4000)/ln 10 = .30103 − 2000/2.302585
    assert quality.log10_p == pytest.approx(0.30103 - 868.58896, abs=1e-4)


_SAMPLE = arrays(np.float64, st.integers(1, 30), elements=st.integers(-8, 8).map(lambda k: k / 4))


@settings(deadline=None)  # the first call imports scipy
@given(_SAMPLE, _SAMPLE)
def test_forget_quality_does_not_change_when_the_ratio_is_inverted(ours, theirs):
    assert forget_quality(ours, theirs).p == pytest.approx(forget_quality(-ours, -theirs).p, rel=1e-9)
    assert forget_quality(ours, theirs).statistic == pytest.approx(forget_quality(theirs, ours).statistic)
