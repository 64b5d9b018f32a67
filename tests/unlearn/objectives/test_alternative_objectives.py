"""Objectives with an alternative answer: by hand arithmetic, against float64 loops, and cut into pieces."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import logsigmoid

from tests.tolerance import approx, assert_close
from unlearn.objectives import flat_batch as flat_batch_module
from unlearn.objectives import kto as kto_module
from unlearn.objectives.answer_preservation import answer_preservation
from unlearn.objectives.dpo import dpo
from unlearn.objectives.flat import flat
from unlearn.objectives.flat_batch import flat_batch
from unlearn.objectives.kto import kto

RIGHT = ["kl", "jensen_shannon", "pearson", "total_variation", "jeffrey", "reverse_kl", "squared_hellinger"]
ALL = [*RIGHT, "neyman"]
LENGTHS, ALT_LENGTHS = (3, 1, 4, 2), (2, 5, 1, 3)


def log(*p):
    return torch.tensor(p, dtype=torch.float64).log().float()


# One answer of .9·.5·.1 = .045, .95·.6·.3 = .171 under the reference; alternative .2·.5 = .1, reference .04.
LOGP, REF = log(0.9, 0.5, 0.1), log(0.95, 0.6, 0.3)
ALT, REF_ALT = log(0.2, 0.5), log(0.1, 0.4)
THREE, TWO = torch.tensor([3]), torch.tensor([2])


def batch(seed=0, dtype=torch.float32):
    """Log-probabilities of four answers and alternatives, each with its reference's."""
    generator = torch.Generator().manual_seed(seed)

    def logp(n):
        return -torch.rand(n, generator=generator, dtype=torch.float64).mul(3).pow(2).to(dtype)

    n, m = sum(LENGTHS), sum(ALT_LENGTHS)
    return {"logp": logp(n), "ref_logp": logp(n), "alt_logp": logp(m), "ref_alt_logp": logp(m)}


def pieces(values, lengths):
    out, start = [], 0
    for n in lengths:
        out.append(values[start : start + n])
        start += n
    return out


def total(values, lengths):
    return torch.stack([piece.sum() for piece in pieces(values, lengths)])


# The formulas again, as loops over examples in float64; K and P̄ of the whole batch, never constant inputs.


def dpo_reference(d, beta):
    out = []
    for lp, ref, alt, ref_alt in zip(
        pieces(d["logp"], LENGTHS),
        pieces(d["ref_logp"], LENGTHS),
        pieces(d["alt_logp"], ALT_LENGTHS),
        pieces(d["ref_alt_logp"], ALT_LENGTHS),
        strict=True,
    ):
        margin = (alt.sum() - ref_alt.sum()) - (lp.sum() - ref.sum())
        out.append(2 / beta * torch.log1p(torch.exp(-beta * margin)))
    return torch.stack(out)


def kto_reference(d, beta, form="sigmoid", scale_mean=False):
    mean = sum(
        (alt.sum() - ref.sum()).detach() / len(ALT_LENGTHS)
        for alt, ref in zip(
            pieces(d["alt_logp"], ALT_LENGTHS), pieces(d["ref_alt_logp"], ALT_LENGTHS), strict=True
        )
    )
    out = []
    for lp, ref in zip(pieces(d["logp"], LENGTHS), pieces(d["ref_logp"], LENGTHS), strict=True):
        x = (beta if scale_mean else 1) * mean - beta * (lp.sum() - ref.sum())
        out.append(1 - 2 / beta * (torch.sigmoid(x) if form == "sigmoid" else logsigmoid(x)))
    return torch.stack(out)


def preservation_reference(d, beta):
    margin = -total(d["alt_logp"], ALT_LENGTHS) + total(d["logp"], LENGTHS)
    return torch.log1p(torch.exp(-beta * margin)) / beta


def divergence_reference(name, e, f):
    exp, ln, sqrt, tanh = torch.exp, torch.log, torch.sqrt, torch.tanh
    star = {  # f* by itself, so that its composition with g* is worked out here and not taken over
        "kl": lambda u: exp(u - 1),
        "jensen_shannon": lambda u: -ln(2 - exp(u)),
        "pearson": lambda u: u**2 / 4 + u,
        "total_variation": lambda u: u,
        "jeffrey": lambda u: u + u**2 / 4 + u**3 / 16,
        "reverse_kl": lambda u: -1 - ln(-u),
        "squared_hellinger": lambda u: u / (1 - u),
    }
    g = {
        "jensen_shannon": lambda v: ln(2 / (1 + exp(-v))),
        "total_variation": lambda v: tanh(v) / 2,
        "reverse_kl": lambda v: -exp(-v),
        "squared_hellinger": lambda v: 1 - exp(-v),
    }.get(name, lambda v: v)
    if name == "neyman":  # the released code does not compose
        return -(1 - exp(e)) + 2 - 2 * sqrt(1 - f + 1e-6)
    return -g(e) + star[name](g(f))


def probabilities(d, padded):
    def of(values, lengths):
        return torch.stack([p.exp().sum() / (padded or len(p)) for p in pieces(values, lengths)])

    return of(d["alt_logp"], ALT_LENGTHS), of(d["logp"], LENGTHS)


def compare(function, reference, d=None):
    """Values and gradients of both, summed with uneven weights."""
    d = d or batch()
    ours = {k: v.clone().requires_grad_(not k.startswith("ref")) for k, v in d.items()}
    exact = {k: v.double().requires_grad_(not k.startswith("ref")) for k, v in d.items()}
    values, wanted = function(ours), reference(exact)
    assert values.shape == (len(LENGTHS),)
    weights = torch.tensor([1.0, -2.0, 0.5, 3.0])
    (values * weights).sum().backward()
    (wanted * weights).sum().backward()
    # A divergence is a difference of terms of about one.
    assert_close(values, wanted, terms=16, condition=4, scale=1)
    for name in ("logp", "alt_logp"):
        if exact[name].grad is None:
            assert ours[name].grad is None
        else:
            assert_close(ours[name].grad, exact[name].grad, terms=16, condition=4)


L, A = torch.tensor(LENGTHS), torch.tensor(ALT_LENGTHS)


def call_dpo(d, beta=0.1):
    return dpo(d["logp"], d["ref_logp"], L, d["alt_logp"], d["ref_alt_logp"], A, beta=beta)


def call_kto(d, **hyper):
    mean = kto_module.batch_mean(d["alt_logp"], d["ref_alt_logp"], A).mean(0).detach()
    return kto(d["logp"], d["ref_logp"], L, mean, **hyper)


def call_flat(d, **hyper):
    return flat(d["logp"], L, d["alt_logp"], A, **hyper)


def call_flat_batch(d, divergence, padded=0):
    mean = flat_batch_module.batch_mean(d["logp"], L, d["alt_logp"], A, padded=padded).mean(0).detach()
    return flat_batch(d["logp"], L, d["alt_logp"], A, mean, divergence=divergence, padded=padded)


class TestByHand:
    def test_dpo(self):
        # alternative: ln(.1/.04) = .916291; answer: ln(.045/.171) = −1.335001; margin 2.251292
        # β = .1: −20 ln σ(.2251292) = 20 · ln(1 + e^−.2251292) = 20 · .586905 = 11.738093
        value = dpo(LOGP, REF, THREE, ALT, REF_ALT, TWO, beta=0.1)
        assert value.item() == approx(20 * math.log1p(math.exp(-0.1 * math.log(2.5 * 3.8))), terms=5)
        assert value.item() == approx(11.738093, terms=5, decimals=6)

    def test_dpo_at_the_reference(self):
        # margin 0: (2/β) ln 2
        assert dpo(REF, REF, THREE, REF_ALT, REF_ALT, TWO, beta=0.5).item() == approx(
            4 * math.log(2), terms=5
        )

    def test_dpo_pulls_each_answer_with_the_same_weight(self):
        logp, alt = LOGP.clone().requires_grad_(), ALT.clone().requires_grad_()
        dpo(logp, REF, THREE, alt, REF_ALT, TWO, beta=0.5).sum().backward()
        weight = 2 / (1 + math.exp(0.5 * math.log(9.5)))  # 2σ(−β·margin)
        assert_close(logp.grad, torch.full((3,), weight), terms=5)
        assert_close(alt.grad, torch.full((2,), -weight), terms=5)

    @pytest.mark.parametrize(
        ("scale_mean", "form", "wanted"),
        [
            # K = .916291, β = .1, −β·log-ratio = +.1335001
            (False, "sigmoid", 1 - 20 / (1 + math.exp(-(math.log(2.5) + 0.1 * math.log(3.8))))),
            (True, "sigmoid", 1 - 20 / (1 + 9.5**-0.1)),  # β(K − log-ratio) = .1·ln(2.5·3.8)
            (False, "logsigmoid", 1 + 20 * math.log1p(math.exp(-(math.log(2.5) + 0.1 * math.log(3.8))))),
            (True, "logsigmoid", 1 + 20 * math.log1p(9.5**-0.1)),
        ],
    )
    def test_kto(self, scale_mean, form, wanted):
        mean = kto_module.batch_mean(ALT, REF_ALT, TWO)
        assert mean.shape == (1, 1)
        assert mean.item() == approx(math.log(2.5), terms=5)
        value = kto(LOGP, REF, THREE, mean.mean(0), beta=0.1, form=form, scale_mean=scale_mean)
        assert value.item() == approx(wanted, terms=5)

    @pytest.mark.parametrize(
        ("divergence", "wanted"),
        [
            ("kl", 0.5187307531),  # −.3 + e^−.2
            ("jensen_shannon", 0.3391615493),
            ("pearson", 0.66),  # −.3 + .16 + .8
            ("total_variation", 0.1863620789),  # (tanh .8 − tanh .3)/2
            ("jeffrey", 0.692),  # −.3 + .8 + .16 + .032
            ("reverse_kl", math.exp(-0.3) - 0.2),
            ("squared_hellinger", math.exp(-0.3) - 1 + math.exp(0.8) - 1),
            ("neyman", math.exp(0.3) + 1 - 2 * math.sqrt(0.2)),
        ],
    )
    def test_flat(self, divergence, wanted):
        # P_e = (.1 + .5)/2 = .3, P_f = (.9 + .7)/2 = .8
        template, forget = log(0.1, 0.5), log(0.9, 0.7)
        value = flat(forget, TWO, template, TWO, divergence=divergence)
        assert value.item() == approx(wanted, terms=5, decimals=6)
        # over 6 places instead of 2: P_e = .6/6, P_f = 1.6/6
        diluted = flat(forget, TWO, template, TWO, divergence="pearson", padded=6)
        assert diluted.item() == approx(-0.1 + (1.6 / 6) ** 2 / 4 + 1.6 / 6, terms=5)

    def test_answer_preservation(self):
        # NLL_alt − NLL_answer = ln .045 − ln .1 = ln .45: 10 · ln(1 + .45^−.1)
        value = answer_preservation(LOGP, THREE, ALT, TWO, beta=0.1)
        assert value.item() == approx(10 * math.log1p(0.45**-0.1), terms=5)


class TestAgainstFloat64:
    @pytest.mark.parametrize("beta", [0.05, 0.1, 0.5])
    def test_dpo(self, beta):
        compare(lambda d: call_dpo(d, beta), lambda d: dpo_reference(d, beta))

    @pytest.mark.parametrize("scale_mean", [False, True])
    @pytest.mark.parametrize("form", ["sigmoid", "logsigmoid"])
    def test_kto(self, form, scale_mean):
        hyper = {"beta": 0.3, "form": form, "scale_mean": scale_mean}
        compare(lambda d: call_kto(d, **hyper), lambda d: kto_reference(d, **hyper))

    @pytest.mark.parametrize("beta", [0.1, 1.0])
    def test_answer_preservation(self, beta):
        compare(
            lambda d: answer_preservation(d["logp"], L, d["alt_logp"], A, beta=beta),
            lambda d: preservation_reference(d, beta),
        )

    @pytest.mark.parametrize("padded", [0, 500])
    @pytest.mark.parametrize("divergence", ALL)
    def test_flat(self, divergence, padded):
        compare(
            lambda d: call_flat(d, divergence=divergence, padded=padded),
            lambda d: divergence_reference(divergence, *probabilities(d, padded)),
        )

    @pytest.mark.parametrize("padded", [0, 500])
    @pytest.mark.parametrize("divergence", ALL)
    def test_flat_batch_is_the_divergence_of_the_means(self, divergence, padded):
        d = batch()
        ours = {k: v.clone().requires_grad_() for k, v in d.items()}
        exact = {k: v.double().requires_grad_() for k, v in d.items()}
        mean = call_flat_batch(ours, divergence, padded).mean()
        template, forget = probabilities(exact, padded)
        wanted = divergence_reference(divergence, template.mean(), forget.mean())
        mean.backward()
        wanted.backward()
        assert_close(mean, wanted, terms=16, scale=1)
        for name in ("logp", "alt_logp"):
            assert_close(ours[name].grad, exact[name].grad, terms=16)


def _each(function):
    return {name: partial(function, divergence=name) for name in ALL}


CALLS = {
    "dpo": call_dpo,
    "kto_sigmoid": lambda d: call_kto(d, beta=0.1),
    "kto_logsigmoid": lambda d: call_kto(d, beta=0.1, form="logsigmoid"),
    "answer_preservation": lambda d: answer_preservation(d["logp"], L, d["alt_logp"], A, beta=0.1),
    **{f"flat_{name}": call for name, call in _each(call_flat).items()},
    **{f"flat_batch_{name}": call for name, call in _each(call_flat_batch).items()},
}


@pytest.mark.parametrize("divergence", RIGHT)
@given(template=st.floats(0.01, 0.98), forget=st.floats(0.01, 0.98))
def test_flat_falls_towards_the_template_and_away_from_the_answer(divergence, template, forget):
    def value(e, f):
        one = torch.tensor([1])
        e, f = torch.tensor([e]).double().log(), torch.tensor([f]).double().log()
        return flat(f, one, e, one, divergence=divergence).item()

    assert value(template + 0.01, forget) < value(template, forget)
    assert value(template, forget - 0.005) < value(template, forget)


@pytest.mark.parametrize("name", ["flat_kl", "flat_batch_kl", "dpo", "kto_sigmoid"])
def test_the_answer_is_turned_down(name):
    d = {k: v.requires_grad_() for k, v in batch().items()}
    CALLS[name](d).sum().backward()
    assert (d["logp"].grad > 0).all()
    if not name.startswith("kto"):
        assert (d["alt_logp"].grad < 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CALLS)
def test_finite_at_certainty_and_at_impossibility(name, dtype):
    edges = torch.tensor([0.0, -1e-8, -90.0, -200.0, 0.0, -1e-8, 0.0, 0.0, -200.0, -200.0, 0.0], dtype=dtype)
    n, m = sum(LENGTHS), sum(ALT_LENGTHS)
    d = {
        "logp": edges[:n].clone().requires_grad_(),
        "alt_logp": edges[:m].flip(0).requires_grad_(),
        "ref_logp": torch.zeros(n),
        "ref_alt_logp": torch.full((m,), -200.0),
    }
    values = CALLS[name]({k: v.float() for k, v in d.items()})
    values.sum().backward()
    assert torch.isfinite(values).all()
    grads = [d[name].grad for name in ("logp", "alt_logp")]
    assert grads[0] is not None
    assert all(torch.isfinite(grad).all() for grad in grads if grad is not None)


def permuted(d, order):
    """The batch with its examples in another order."""
    out = {}
    for name, values in d.items():
        parts = pieces(values, ALT_LENGTHS if "alt" in name else LENGTHS)
        out[name] = torch.cat([parts[i] for i in order])
    return out, torch.tensor(LENGTHS)[order], torch.tensor(ALT_LENGTHS)[order]


FUNCTIONS = {
    "dpo": lambda d, le, al, mean: dpo(
        d["logp"], d["ref_logp"], le, d["alt_logp"], d["ref_alt_logp"], al, beta=0.1
    ),
    "kto": lambda d, le, al, mean: kto(d["logp"], d["ref_logp"], le, mean[:1], beta=0.1),
    "preservation": lambda d, le, al, mean: answer_preservation(d["logp"], le, d["alt_logp"], al, beta=0.1),
    "flat": lambda d, le, al, mean: flat(d["logp"], le, d["alt_logp"], al, divergence="pearson"),
    "flat_batch": lambda d, le, al, mean: flat_batch(
        d["logp"], le, d["alt_logp"], al, mean[1:], divergence="pearson", padded=500
    ),
}


def global_mean(d, le=L, al=A):
    ratio = kto_module.batch_mean(d["alt_logp"], d["ref_alt_logp"], al)
    both = flat_batch_module.batch_mean(d["logp"], le, d["alt_logp"], al, padded=500)
    return torch.cat([ratio, both], dim=-1).mean(0).detach()


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("order", [[3, 1, 0, 2], [2, 3], [0]])
def test_an_example_does_not_depend_on_its_batch(name, order):
    d = batch()
    mean = global_mean(d)
    part, lengths, alt_lengths = permuted(d, order)
    whole = FUNCTIONS[name](d, L, A, mean)
    assert_close(FUNCTIONS[name](part, lengths, alt_lengths, mean), whole[order], terms=16)


@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("cut", [[[0, 1], [2, 3]], [[0], [1, 2, 3]], [[0], [1], [2], [3]]])
def test_gradients_of_micro_batches_add_up(name, cut):
    whole = {k: v.requires_grad_() for k, v in batch().items()}
    split = {k: v.requires_grad_() for k, v in batch().items()}
    mean = global_mean(whole)
    (FUNCTIONS[name](whole, L, A, mean).sum() / 4).backward()
    for order in cut:
        part, lengths, alt_lengths = permuted(split, order)
        (FUNCTIONS[name](part, lengths, alt_lengths, mean).sum() / 4).backward()
    assert_close(split["logp"].grad, whole["logp"].grad, terms=16)
    if whole["alt_logp"].grad is not None:
        assert_close(split["alt_logp"].grad, whole["alt_logp"].grad, terms=16)


def test_names_are_refused():
    with pytest.raises(ValueError, match="jensen_shannon, pearson"):
        flat(LOGP, THREE, ALT, TWO, divergence="Jenson-Shannon")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="form=log"):
        kto(LOGP, REF, THREE, torch.zeros(1), beta=0.1, form="log")  # type: ignore[arg-type]
