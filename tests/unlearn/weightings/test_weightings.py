"""Weightings by hand arithmetic, against float64 loops, by their equivalences, and at p → 0 and p → 1."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tolerance import approx, assert_close
from unlearn.weightings.annotated import annotated
from unlearn.weightings.bottom_k import bottom_k
from unlearn.weightings.nlul import nlul
from unlearn.weightings.random_k import random_k
from unlearn.weightings.satimp import satimp
from unlearn.weightings.simimp import simimp
from unlearn.weightings.simsat import simsat
from unlearn.weightings.tnpo import tnpo
from unlearn.weightings.top_k import top_k

PROPERTY = settings(deadline=None, max_examples=25)  # no deadline: machines are shared

# One answer of three tokens with probabilities .9, .5, .1; under the reference .95, .6, .3.
LOGP, REF = torch.tensor([0.9, 0.5, 0.1]).log(), torch.tensor([0.95, 0.6, 0.3]).log()
ENDS = torch.tensor([0.0, -1e-8, -90.0, -200.0])

LOGPS = st.lists(st.floats(-30, 0, width=32), min_size=1, max_size=12)
PAIRS = st.lists(st.tuples(st.floats(-30, 0, width=32), st.floats(-30, 0, width=32)), min_size=1, max_size=12)
EXPONENT = st.floats(0, 6)
SEQUENCES = st.lists(
    st.lists(st.sampled_from([-8.0, -3.0, -1.0, -0.5, -0.1, 0.0]), min_size=1, max_size=9),
    min_size=1,
    max_size=5,
)  # few values: many ties


def flat(sequences):
    values = torch.tensor([value for sequence in sequences for value in sequence])
    return values, torch.tensor([len(sequence) for sequence in sequences])


# Of what is larger, fp32 has no exponential.
MOST = 88


def close(found, wanted, nats=1):
    """A weight is an exponential of so many `nats`, whose absolute error is a relative one of the weight."""
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert_close(found, wanted, condition=nats, each=True)


# −(1/3)·Σ w ℓ with ℓ = (0.105361, 0.693147, 2.302585)
@pytest.mark.parametrize(
    ("weights", "wanted"),
    [
        (simsat(LOGP, beta=1), -0.2238855212),  # (.9·.105361 + .5·.693147 + .1·2.302585)/3
        (simsat(LOGP, beta=5), -0.0279660687),
        (simimp(LOGP, beta=1), -0.8098120752),  # (.1·.105361 + .5·.693147 + .9·2.302585)/3
        (simimp(LOGP, beta=5), -0.4604384582),
        (satimp(LOGP, beta1=5, beta2=0.1), -0.0232172238),
        (satimp(LOGP, beta1=5, beta2=1), -0.0056908604),
        (tnpo(LOGP, REF, beta=1), -0.6279680723),  # w = (1.8/1.85001, 1/1.10001, .2/.40001)
        (tnpo(LOGP, REF, beta=4), -0.2003708292),
        (tnpo(LOGP, REF, beta=4, alpha=1.5), -0.0804992129),
        # p/(1 − p) = (9, 1, 1/9): (.9482446 + .6931472 + .2558428)/3, and without the last
        (nlul(LOGP, tolerance=0), -0.6324115366),
        (nlul(LOGP, tolerance=0, threshold=0.2), -0.5471306072),
    ],
)
def test_ascent_under_a_weighting(weights, wanted):
    assert (weights * LOGP).mean().item() == approx(wanted, terms=3, condition=5)


@PROPERTY
@given(LOGPS, EXPONENT, EXPONENT)
def test_saturation_and_importance_against_float64(values, beta1, beta2):
    logp = torch.tensor(values)
    sat = [math.exp(v) ** beta1 for v in values]
    imp = [(-math.expm1(v)) ** beta2 for v in values]
    close(simsat(logp, beta=beta1), sat, MOST)
    close(simimp(logp, beta=beta2), imp, MOST)
    close(satimp(logp, beta1=beta1, beta2=beta2), [s * i for s, i in zip(sat, imp, strict=True)], MOST)


@PROPERTY
@given(PAIRS, EXPONENT, st.floats(0, 2), st.sampled_from([1e-5, 1e-2]))
def test_tnpo_against_float64(pairs, beta, alpha, epsilon):
    logp, ref = torch.tensor(pairs).unbind(1)
    wanted = [
        2 * math.exp(p) ** (beta + alpha) / (math.exp(p) ** beta + math.exp(r) ** beta + epsilon)
        for p, r in pairs
    ]
    # Numerator and denominator have exponents of up to 240 nats, and one is the other's size.
    close(tnpo(logp, ref, beta=beta, alpha=alpha, epsilon=epsilon), wanted, 240)


@PROPERTY
@given(LOGPS, st.floats(0, 1), st.sampled_from([1e-6, 1e-3]))
def test_nlul_against_float64(values, threshold, tolerance):
    # fp32 probabilities as the threshold sees them, so that rounding does not decide
    kept = [v if float(torch.tensor(v).exp()) >= threshold else -math.inf for v in values]
    wanted = [math.exp(k) / (tolerance - math.expm1(v)) for k, v in zip(kept, values, strict=True)]
    close(nlul(torch.tensor(values), threshold=threshold, tolerance=tolerance), wanted, 30)


def test_nlul_over_ascent_has_the_gradient_of_the_log_unlikelihood():
    logits = torch.tensor([[2.0, 0.5, -1.0], [-3.0, 1.0, 0.0]], dtype=torch.double, requires_grad=True)
    logp = logits.log_softmax(-1)[:, 0]
    (wanted,) = torch.autograd.grad(-torch.log1p(-logp.exp()).sum(), logits, retain_graph=True)
    (found,) = torch.autograd.grad((nlul(logp, tolerance=1e-9) * logp).sum(), logits)
    # A weight is in fp32; the tolerance of 1e-9 is less than its resolution.
    assert_close(found, wanted, dtype=torch.float32, each=True)
    assert_close(found[:, 0], logp.exp(), dtype=torch.float32, each=True)  # p on the gold logit


def test_importance_does_not_cancel_near_certainty():
    # 1 − e^−1e-6 = 1e-6 − 5e-13; in fp32 1 − p would be a multiple of 6e-8
    assert simimp(torch.tensor([-1e-6]), beta=1).item() == approx(1e-6 - 5e-13)
    assert nlul(torch.tensor([-1e-4]), tolerance=0).item() == approx(1e4 - 0.5, terms=4)


@PROPERTY
@given(LOGPS, EXPONENT)
def test_equivalences_of_saturation_and_importance(values, beta):
    logp = torch.tensor(values)
    assert torch.equal(satimp(logp, beta1=beta, beta2=0), simsat(logp, beta=beta))
    assert torch.equal(satimp(logp, beta1=0, beta2=beta), simimp(logp, beta=beta))
    assert torch.equal(satimp(logp, beta1=0, beta2=0), torch.ones_like(logp))


@PROPERTY
@given(PAIRS, EXPONENT)
def test_equivalences_of_tnpo(pairs, beta):
    logp, ref = torch.tensor(pairs).unbind(1)
    assert torch.equal(tnpo(logp, ref, beta=beta, alpha=0), tnpo(logp, ref, beta=beta))
    # β → 0: 2/(1 + 1 + ε), plain ascent but for half of ε = 1e-5 and of β · 30
    assert tnpo(logp, ref, beta=1e-7).tolist() == pytest.approx([1.0] * len(logp), rel=1e-5)
    # at the reference itself, without ε, every token has weight one
    assert torch.equal(tnpo(logp, logp, beta=beta, epsilon=0), torch.ones_like(logp))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("epsilon", [0.0, 1e-5])
def test_finite_at_certainty_and_at_impossibility(dtype, epsilon):
    logp = ENDS.to(dtype).requires_grad_()
    for weights in [
        simsat(logp, beta=5),
        simimp(logp, beta=5),
        satimp(logp, beta1=5, beta2=0.1),
        nlul(logp),
        *(tnpo(logp, ref, beta=4, alpha=1.5, epsilon=epsilon) for ref in (ENDS, ENDS.flip(0))),
        top_k(logp, torch.tensor([1, 3]), keep=0.5),
        bottom_k(logp, torch.tensor([1, 3]), keep=0.5),
    ]:
        assert weights.dtype == torch.float32
        assert not weights.requires_grad
        assert torch.isfinite(weights).all()
        assert (weights >= 0).all()


def test_tnpo_below_the_range_of_fp32():
    # p^4 = e^−400 and e^−404 are 0 in fp32; without ε: 2/(1 + e^−4)
    weight = tnpo(torch.tensor([-100.0]), torch.tensor([-101.0]), beta=4, epsilon=0)
    assert weight.item() == approx(2 / (1 + math.exp(-4)), condition=4)


def test_selection_by_hand():
    # Lengths 4 and 1: round(.5·4) = 2 of the first, at least 1 of the second. Losses 1, 3, 3, 2 | 5.
    logp, lengths = torch.tensor([-1.0, -3.0, -3.0, -2.0, -5.0]), torch.tensor([4, 1])
    assert top_k(logp, lengths, keep=0.5).tolist() == [0, 1, 1, 0, 1]
    assert bottom_k(logp, lengths, keep=0.5).tolist() == [1, 0, 0, 1, 1]
    assert top_k(logp, lengths, keep=0.25).tolist() == [0, 1, 0, 0, 1]  # a tie: the earlier
    assert bottom_k(logp, lengths, keep=0.75).tolist() == [1, 1, 0, 1, 1]
    soft = [weigh(logp, lengths, keep=0.5, soft=0.75).tolist() for weigh in (top_k, bottom_k)]
    assert soft == [[0.25, 0.75, 0.75, 0.25, 0.75], [0.75, 0.25, 0.25, 0.75, 0.75]]
    assert top_k(logp, lengths, keep=0).tolist() == [0, 1, 0, 0, 1]
    assert top_k(logp, lengths, keep=1).tolist() == [1] * 5
    noise = torch.tensor([0.9, 0.2, 0.4, 0.1, 0.5])
    assert random_k(noise, lengths, keep=0.5).tolist() == [0, 1, 0, 1, 1]
    close(random_k(noise, lengths, keep=0.5, soft=0.7), [0.3, 0.7, 0.3, 0.7, 0.7])
    with pytest.raises(ValueError, match="keep=15"):
        top_k(logp, lengths, keep=15)


def test_an_empty_sequence_takes_no_token():
    logp, lengths = torch.tensor([-1.0, -3.0, -2.0]), torch.tensor([0, 2, 0, 1, 0])
    assert top_k(logp, lengths, keep=0.5).tolist() == [0, 1, 1]


def test_annotated_by_hand():
    important = torch.tensor([True, False, True])
    close(annotated(important), [1, 0, 1])
    close(annotated(important, soft=0.8), [0.8, 0.2, 0.8])


@PROPERTY
@given(SEQUENCES, st.floats(0, 1), st.floats(0, 1))
def test_selection_against_a_loop(sequences, keep, soft):
    def chosen(scores):  # smallest score first, then position
        ranked = sorted(range(len(scores)), key=lambda i: (scores[i], i))
        taken = set(ranked[: max(1, round(keep * len(scores)))])
        return [float(i in taken) for i in range(len(scores))]

    values, lengths = flat(sequences)
    smallest = [w for s in sequences for w in chosen(s)]
    largest = [w for s in sequences for w in chosen([-v for v in s])]
    close(top_k(values, lengths, keep=keep), smallest)
    close(bottom_k(values, lengths, keep=keep), largest)
    mixed = [w * soft + (1 - w) * (1 - soft) for w in smallest]
    close(random_k(values, lengths, keep=keep, soft=soft), mixed)


@PROPERTY
@given(SEQUENCES, st.floats(0, 1), st.randoms(use_true_random=False))
def test_a_token_s_weight_depends_on_its_sequence_alone(sequences, keep, random):
    shuffled = list(enumerate(sequences))
    random.shuffle(shuffled)
    values, lengths = flat(sequences)
    again, cuts = flat([sequence for _, sequence in shuffled])
    for weigh in (top_k, bottom_k, random_k):
        whole = weigh(values, lengths, keep=keep).split(lengths.tolist())
        moved = weigh(again, cuts, keep=keep).split(cuts.tolist())
        for part, (index, sequence) in zip(moved, shuffled, strict=True):
            alone = weigh(*flat([sequence]), keep=keep)
            assert part.tolist() == whole[index].tolist() == alone.tolist()
