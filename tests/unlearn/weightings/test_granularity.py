"""Granularities by hand arithmetic, against float64 loops, and by invariance."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.tolerance import approx, assert_close
from unlearn.objectives.ascent_sum import ascent_sum
from unlearn.weightings._granularity import group_means, instance_weights, token_weights
from unlearn.weightings.satimp import satimp
from unlearn.weightings.simimp import simimp
from unlearn.weightings.simsat import simsat
from unlearn.weightings.tnpo import tnpo
from unlearn.weightings.top_k import top_k

PROPERTY = settings(deadline=None, max_examples=25)  # no deadline: machines are shared

LOGP, REF = torch.tensor([0.9, 0.5, 0.1]).log(), torch.tensor([0.95, 0.6, 0.3]).log()
ONE = torch.tensor([3])
TOKENS = st.tuples(st.floats(-4, 0, width=32), st.floats(-4, 0, width=32))
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=9), min_size=1, max_size=5)
WEIGH = {
    "logp": partial(satimp, beta1=1.5, beta2=0.5),
    "ref_logp": partial(tnpo, beta=1.5, alpha=0.5),
}


def flat(sequences):
    logp, ref = torch.tensor([token for sequence in sequences for token in sequence]).unbind(1)
    return {"logp": logp, "ref_logp": ref}, torch.tensor([len(sequence) for sequence in sequences])


def weighed(kind, sequences):
    named, lengths = flat(sequences)
    return WEIGH[kind], {name: named[name] for name in sorted({"logp", kind})}, lengths


def reference(kind, p, r):
    """The weighting of one log-confidence, in float64."""
    if kind == "logp":
        return math.exp(1.5 * p) * (-math.expm1(p)) ** 0.5
    return 2 * math.exp(p) ** 2 / (math.exp(p) ** 1.5 + math.exp(r) ** 1.5 + 1e-5)


def group_loop(weights, size):
    ranked = sorted(range(len(weights)), key=lambda i: -weights[i])
    mean: dict[int, float] = {}
    for start in range(0, len(ranked), size):
        members = ranked[start : start + size]
        mean |= dict.fromkeys(members, math.fsum(weights[i] for i in members) / len(members))
    return [mean[i] for i in range(len(weights))]


# A weight is an exponential of so many nats, of which the error is a relative one: for a token, and summed
# over nine.
NATS, SUMMED = 1.5 * 4, 1.5 * 4 * 9


def close(found, wanted, condition=1):
    assert found.dtype == torch.float32
    assert not found.requires_grad
    assert_close(found, wanted, terms=4, condition=condition, each=True)


@pytest.mark.parametrize(
    ("weigh", "wanted"),
    # π = .9·.5·.1 = .045, S = 3.101093: −.045·S and −.955·S
    [(partial(simsat, beta=1), -0.1395491755), (partial(simimp, beta=1), -2.9615436137)],
)
def test_instance_weights_of_the_released_code(weigh, wanted):
    weights = token_weights(weigh, {"logp": LOGP}, ONE, granularity="instance")
    assert ascent_sum(LOGP, ONE, weights).item() == approx(wanted, terms=4)


def test_by_hand():
    sat, named = partial(simsat, beta=1), {"logp": LOGP}
    close(token_weights(sat, named, ONE, granularity="token"), [0.9, 0.5, 0.1])
    # in descending order .9 .5 | .1: means .7 and .1
    close(token_weights(sat, named, ONE, granularity="group", group_size=2), [0.7, 0.7, 0.1])
    # .045^(1/3) = .3556893
    close(token_weights(sat, named, ONE, granularity="instance", length_norm=True), [0.045 ** (1 / 3)] * 3)
    close(token_weights(sat, named, ONE, granularity="batch", batch_mean=0.25), [0.25] * 3)
    mean = torch.tensor(0.25, dtype=torch.double)
    close(token_weights(sat, named, ONE, granularity="batch", batch_mean=mean), [0.25] * 3)
    # mean .5: .9/.5, .5/.5, .1/.5
    close(token_weights(sat, named, ONE, normalise=True), [1.8, 1.0, 0.2])


def test_a_normalised_selection_is_the_mean_over_the_kept_tokens():
    logp, lengths = torch.tensor([-1.0, -3.0, -2.0, -4.0, -5.0, -6.0]), torch.tensor([4, 2])
    named = {"logp": logp, "lengths": lengths}
    weights = token_weights(partial(top_k, keep=0.5), named, lengths, normalise=True)
    assert weights.tolist() == [0, 2, 0, 2, 0, 2]
    means = ascent_sum(logp, lengths, weights) / lengths
    assert means.tolist() == [-3.5, -6.0]  # (3 + 4)/2 and 6


def test_groups_follow_rank_not_position_and_stay_in_their_sequence():
    weights = torch.tensor([0.1, 0.9, 0.5, 0.3, 0.8, 0.2])
    # sequences (.1 .9 .5 .3) and (.8 .2), groups of three: .9 .5 .3 → 1.7/3, .1; .8 .2 → .5
    wanted = [0.1, 1.7 / 3, 1.7 / 3, 1.7 / 3, 0.5, 0.5]
    close(group_means(weights, torch.tensor([4, 2]), 3), wanted)
    close(group_means(weights, torch.tensor([0, 4, 0, 2]), 3), wanted)


@PROPERTY
@given(SEQUENCES, st.sampled_from(["logp", "ref_logp"]), st.integers(1, 4), st.booleans())
def test_against_a_loop(sequences, kind, size, length_norm):
    weigh, named, lengths = weighed(kind, sequences)
    tokens, groups, answers, ones = [], [], [], []
    for sequence in sequences:
        own = [reference(kind, p, r) for p, r in sequence]
        tokens += own
        groups += group_loop(own, size)
        scale = len(own) if length_norm else 1
        p, r = (math.fsum(column) / scale for column in zip(*sequence, strict=True))
        answers.append(reference(kind, p, r))
        total = math.fsum(own)
        ones += [w * len(own) / total if total else 0.0 for w in own]
    make = partial(token_weights, weigh, named, lengths)
    close(make(granularity="token"), tokens, NATS)
    close(make(granularity="group", group_size=size), groups, NATS)
    close(instance_weights(weigh, named, lengths, length_norm=length_norm), answers, SUMMED)
    spread = [a for a, sequence in zip(answers, sequences, strict=True) for _ in sequence]
    close(make(granularity="instance", length_norm=length_norm), spread, SUMMED)
    close(make(granularity="token", normalise=True), ones, NATS)


@PROPERTY
@given(SEQUENCES, st.sampled_from(["token", "group", "instance"]), st.booleans())
def test_a_sequence_s_weights_do_not_depend_on_the_others(sequences, granularity, normalise):
    def make(rows):
        weigh, named, lengths = weighed("ref_logp", rows)
        weights = token_weights(
            weigh, named, lengths, granularity=granularity, group_size=3, normalise=normalise
        )
        return weights.split(lengths.tolist())

    whole, reversed_, alone = make(sequences), make(sequences[::-1])[::-1], [make([s])[0] for s in sequences]
    for one, other, single in zip(whole, reversed_, alone, strict=True):
        assert_close(one, other, each=True)
        assert_close(one, single, each=True)


@PROPERTY
@given(SEQUENCES)
def test_equal_granularities(sequences):
    weigh, named, lengths = weighed("logp", sequences)
    make = partial(token_weights, weigh, named, lengths)
    # groups of one are tokens; one group of all is the mean; a sequence of one token is an instance
    assert torch.equal(make(granularity="group", group_size=1), make(granularity="token"))
    weights = make(granularity="group", group_size=99)
    for part, own in zip(
        weights.split(lengths.tolist()), make(granularity="token").split(lengths.tolist()), strict=True
    ):
        assert_close(part, own.mean().expand_as(own), terms=max(len(own), 1), each=True)
    ones = torch.ones(len(named["logp"]), dtype=torch.long)
    alone = token_weights(weigh, named, ones, granularity="instance")
    assert torch.equal(alone, make(granularity="token"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("granularity", ["token", "group", "instance"])
@pytest.mark.parametrize("normalise", [False, True])
def test_finite_at_the_ends(dtype, granularity, normalise):
    logp = torch.tensor([0.0, -1e-8, -90.0, -200.0, -200.0], dtype=dtype, requires_grad=True)
    lengths = torch.tensor([1, 3, 0, 1])
    for weigh in (partial(simsat, beta=5), partial(satimp, beta1=5, beta2=0.1)):
        weights = token_weights(weigh, {"logp": logp}, lengths, granularity=granularity, normalise=normalise)
        assert weights.dtype == torch.float32
        assert not weights.requires_grad
        assert torch.isfinite(weights).all()
    weights = token_weights(partial(simsat, beta=5), {"logp": logp}, lengths, normalise=True)
    assert weights.tolist() == [1, 3, 0, 0, 0]  # all weights of the last sequence vanish: they stay zero


@pytest.mark.parametrize(
    ("given_", "message"),
    [
        ({"granularity": "sentence"}, "granularity=sentence"),
        ({"granularity": "batch"}, "needs the mean"),
        ({"granularity": "group", "group_size": 0}, "group_size=0"),
    ],
)
def test_refusals(given_, message):
    with pytest.raises(ValueError, match=message):
        token_weights(partial(simsat, beta=1), {"logp": LOGP}, ONE, **given_)


def test_selection_has_no_instance_granularity():
    named = {"logp": LOGP, "lengths": ONE}
    with pytest.raises(ValueError, match="needs lengths weighs tokens"):
        token_weights(partial(top_k, keep=0.5), named, ONE, granularity="instance")
