"""Objectives by hand arithmetic, by invariance, and against another framework's values on real rows."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.paths import SHARED
from tests.tolerance import PASS, approx, assert_close
from unlearn.config import MethodConfig
from unlearn.data.batching import collate
from unlearn.data.tokenization import Encoder
from unlearn.errors import ConfigError
from unlearn.objectives.ascent import ascent
from unlearn.objectives.ascent_sum import ascent_sum
from unlearn.objectives.nll import nll
from unlearn.objectives.npo import npo
from unlearn.objectives.simnpo import simnpo
from unlearn.passes.forward import forward
from unlearn.terms import OBJECTIVES, bind
from unlearn.weightings.satimp import satimp
from unlearn.weightings.simsat import simsat

PROPERTY = settings(deadline=None, max_examples=25)  # no deadline: machines are shared

# One answer of three tokens with probabilities .9, .5, .1; under the reference .95, .6, .3.
P = torch.tensor([0.9, 0.5, 0.1])
LOGP, REF = P.log(), torch.tensor([0.95, 0.6, 0.3]).log()
ONE = torch.tensor([3])

# Sequences of tokens (log p, reference's log p, weight).
LOG_PROBABILITY = st.floats(-9, 0, width=32)
TOKENS = st.tuples(LOG_PROBABILITY, LOG_PROBABILITY, st.floats(0, 2, width=32))
SEQUENCES = st.lists(st.lists(TOKENS, min_size=1, max_size=7), min_size=1, max_size=5)

# Objective of (logp, reference, weights, lengths), and the formula of one sequence of float64 tensors, of
# which the objective has [B] values or, where it is per token, [N].
CASES: dict[str, tuple[Callable[..., Tensor], Callable[..., Tensor]]] = {
    "nll": (lambda p, r, w, n: nll(p), lambda p, r, w: -p),
    "ascent": (lambda p, r, w, n: ascent(p), lambda p, r, w: p),
    "ascent weighted": (lambda p, r, w, n: ascent(p, w), lambda p, r, w: w * p),
    "ascent_sum": (lambda p, r, w, n: ascent_sum(p, n), lambda p, r, w: p.sum()),
    "ascent_sum weighted": (lambda p, r, w, n: ascent_sum(p, n, w), lambda p, r, w: (w * p).sum()),
    "npo": (
        lambda p, r, w, n: npo(p, r, n, beta=0.3),
        lambda p, r, w: 2 / 0.3 * torch.log1p(torch.exp(0.3 * (p - r).sum())),
    ),
    "npo weighted": (
        lambda p, r, w, n: npo(p, r, n, w, beta=0.3),
        lambda p, r, w: 2 / 0.3 * torch.log1p(torch.exp(0.3 * (w * (p - r)).sum())),
    ),
    "simnpo": (
        lambda p, r, w, n: simnpo(p, n, beta=2.5, delta=0.4),
        lambda p, r, w: 2 / 2.5 * torch.log1p(torch.exp(2.5 * (p.mean() + 0.4))),
    ),
}


def flat(sequences, dtype=torch.float32):
    columns = torch.tensor([token for tokens in sequences for token in tokens], dtype=dtype).unbind(1)
    return columns, torch.tensor([len(tokens) for tokens in sequences])


def summed(sequences):
    """The largest sum of magnitudes in an answer: what rounding is relative to where a ratio cancels."""
    return max(sum(max(w, 1) * -(p + r) for p, r, w in tokens) for tokens in sequences)


def satimp_term(beta1, beta2):
    return {"objective": "ascent", "weighting": {"name": "satimp", "beta1": beta1, "beta2": beta2}}


def test_nll_and_ascent():
    # −(ln .9 + ln .5 + ln .1)/3 = (0.105361 + 0.693147 + 2.302585)/3 = 1.033698
    assert nll(LOGP).mean().item() == approx(1.0336975964, terms=3)
    assert ascent(LOGP).mean().item() == approx(-1.0336975964, terms=3)
    assert ascent_sum(LOGP, ONE).tolist() == approx([3 * -1.0336975964], terms=3)


@pytest.mark.parametrize(
    ("beta1", "beta2", "wanted"),
    [
        (1, 0, -0.2238855212),  # WGA, SimSat: (.9·−.105361 + .5·−.693147 + .1·−2.302585)/3
        (5, 0, -0.0279660687),
        (0, 1, -0.8098120752),  # SimImp
        (0, 5, -0.4604384582),
        (5, 0.1, -0.0232172238),
        (5, 1, -0.0056908604),
    ],
)
def test_ascent_under_satimp(beta1, beta2, wanted):
    weights = satimp(LOGP, beta1=beta1, beta2=beta2)
    assert ascent(LOGP, weights).mean().item() == approx(wanted, terms=3, condition=5)
    if beta2 == 0:
        assert ascent(LOGP, simsat(LOGP, beta=beta1)).mean().item() == approx(wanted, terms=3, condition=5)


def test_the_weight_of_satimp_carries_no_gradient():
    logp = LOGP.clone().requires_grad_()
    ascent(logp, satimp(logp, beta1=5, beta2=0.1)).sum().backward()
    assert_close(logp.grad, P**5 * (1 - P) ** 0.1, condition=5)


@pytest.mark.parametrize(
    ("beta", "value", "weight"), [(0.1, 12.5724651931, 0.9333489069), (0.5, 1.6563491232, 0.6781134778)]
)
def test_npo(beta, value, weight):
    # ratio = ln(.045/.171) = −1.335001; −(2/β) ln σ(−β·ratio)
    logp = LOGP.clone().requires_grad_()
    loss = npo(logp, REF, ONE, beta=beta)
    assert loss.shape == (1,)
    assert loss.item() == approx(value, terms=6)
    loss.sum().backward()
    # every token of the answer gets 2π^β/(π^β + π_ref^β)
    assert_close(logp.grad, torch.full((3,), weight), terms=6)


def test_npo_is_ascent_on_the_answer_for_small_beta():
    logp = LOGP.clone().requires_grad_()
    npo(logp, REF, ONE, beta=1e-4).sum().backward()
    # 2σ(β·ratio) is 1 + β·ratio/2, with a ratio of −1.3: that is what β leaves.
    assert logp.grad is not None
    assert logp.grad.tolist() == pytest.approx([1.0] * 3, rel=1e-4)


def test_npo_cuts_answers_by_their_lengths():
    lengths = torch.tensor([2, 1])
    both = npo(LOGP, REF, lengths, beta=0.1)
    first = npo(LOGP[:2], REF[:2], torch.tensor([2]), beta=0.1)
    last = npo(LOGP[2:], REF[2:], torch.tensor([1]), beta=0.1)
    assert torch.equal(both, torch.cat([first, last]))


def test_npo_per_token_by_hand():
    # ratio = −1.335001/3 = −.445000; 2/.5·ln(1 + e^(.5·−.445000)) = 4·ln(1.800515) = 2.352291
    logp = LOGP.clone().requires_grad_()
    loss = npo(logp, REF, ONE, beta=0.5, per_token=True)
    assert loss.item() == approx(2.352291, terms=6, decimals=6)
    loss.sum().backward()
    # 2σ(.5·−.445000)/3 = 2·.444603/3
    assert_close(logp.grad, torch.full((3,), 0.296402), terms=6, decimals=6)


def test_npo_with_weights_by_hand():
    # the first two tokens at half: ratio = .5·(ln(.9/.95) + ln(.5/.6)) + ln(.1/.3) = −1.216807
    # 2/.5·ln(1 + e^(.5·−1.216807)) = 4·ln(1.544219) = 1.738073
    weights = torch.tensor([0.5, 0.5, 1.0])
    logp = LOGP.clone().requires_grad_()
    loss = npo(logp, REF, ONE, weights, beta=0.5)
    assert loss.item() == approx(1.738073, terms=6, decimals=6)
    loss.sum().backward()
    # 2σ(.5·−1.216807) = 2·.544219/1.544219 = .704847, times each weight
    assert_close(logp.grad, 0.704847 * weights, terms=6, decimals=6)


@pytest.mark.parametrize(
    ("beta", "delta", "value"),
    [
        (4.5, 0, 0.0042225186),  # 2/4.5·ln(1 + e^(−4.5·1.033698))
        (2.5, 0, 0.0581936499),
        (4.5, 0.125, 0.0073843799),  # 2/4.5·ln(1 + e^(−4.5·(1.033698 − .125))): the margin inside β
    ],
)
def test_simnpo(beta, delta, value):
    loss = simnpo(LOGP, ONE, beta=beta, delta=delta)
    assert loss.shape == (1,)
    assert loss.item() == approx(value, terms=6)


@pytest.mark.parametrize("name", CASES)
@PROPERTY
@given(sequences=SEQUENCES)
def test_against_float64_values_and_gradients(name, sequences):
    objective, formula = CASES[name]
    (logp, ref, weights), lengths = flat(sequences)
    logp.requires_grad_()
    values = objective(logp, ref, weights, lengths)
    assert values.dtype == torch.float32
    (grad,) = torch.autograd.grad(values.square().sum(), logp)  # squared: a different pull for each value

    wanted, slopes = [], []
    for tokens in sequences:
        (p, r, w), _ = flat([tokens], torch.double)
        p.requires_grad_()
        value = formula(p, r, w).reshape(-1)
        slopes.append(torch.autograd.grad(value.square().sum(), p)[0])
        wanted.append(value.detach())
    scale, largest = summed(sequences), float(values.detach().abs().max())
    assert_close(values, torch.cat(wanted), terms=4, scale=1 + scale)
    assert_close(grad, torch.cat(slopes), terms=4, scale=(1 + scale) * (1 + largest))


@pytest.mark.parametrize("name", CASES)
@PROPERTY
@given(sequences=SEQUENCES, cut=st.integers(0, 5))
def test_values_do_not_depend_on_the_batch(name, sequences, cut):
    objective, _ = CASES[name]

    def of(part):
        columns, lengths = flat(part)
        values = objective(*columns, lengths)
        return list(values.split(lengths.tolist() if len(values) == len(columns[0]) else 1))

    def compare(one, other):
        assert_close(torch.cat(one), torch.cat(other), scale=1 + summed(sequences))

    compare(of(sequences), of(sequences[::-1])[::-1])
    parts = [part for part in (sequences[:cut], sequences[cut:]) if part]
    compare(of(sequences), [value for part in parts for value in of(part)])


@PROPERTY
@given(SEQUENCES)
def test_npo_becomes_ascent_on_the_sum(sequences):
    (logp, ref, weights), lengths = flat(sequences, torch.double)
    logp.requires_grad_()
    for given_ in (None, weights):
        (found,) = torch.autograd.grad(npo(logp, ref, lengths, given_, beta=1e-7).sum(), logp)
        (wanted,) = torch.autograd.grad(ascent_sum(logp, lengths, given_).sum(), logp)
        # 2σ(β·ratio) is 1 + β·ratio/2, with a ratio of up to 126.
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=0)


@PROPERTY
@given(SEQUENCES, st.floats(0.1, 5))
def test_simnpo_without_margin_is_npo_of_the_mean_against_certainty(sequences, beta):
    (logp, _, _), lengths = flat(sequences, torch.double)
    mean = logp / lengths.repeat_interleave(lengths)
    wanted = npo(mean, torch.zeros_like(mean), lengths, beta=beta)
    # e^(β·mean), of up to 45 nats
    assert_close(simnpo(logp, lengths, beta=beta, delta=0), wanted, condition=45, each=True)
    # weights of 1/length do the same to NPO
    zero = torch.zeros_like(logp)
    by_weight = npo(logp, zero, lengths, 1 / lengths.double().repeat_interleave(lengths), beta=beta)
    assert_close(by_weight, wanted, condition=45, each=True)
    assert_close(npo(logp, zero, lengths, beta=beta, per_token=True), wanted, condition=45, each=True)


@PROPERTY
@given(SEQUENCES)
def test_no_weights_are_weights_of_one(sequences):
    (logp, ref, _), lengths = flat(sequences)
    ones = torch.ones_like(logp)
    assert torch.equal(ascent(logp, ones), ascent(logp))
    assert torch.equal(ascent_sum(logp, lengths, ones), ascent_sum(logp, lengths))
    assert torch.equal(npo(logp, ref, lengths, ones, beta=0.1), npo(logp, ref, lengths, beta=0.1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_gradients_are_finite_at_certainty_and_at_impossibility(name, dtype):
    logp = torch.tensor([0.0, -1e-8, -90.0, -200.0], dtype=dtype, requires_grad=True)
    lengths = torch.tensor([1, 3])
    for ref in (torch.zeros(4), logp.detach().float().flip(0)):
        values = CASES[name][0](logp.float(), ref, satimp(logp, beta1=5, beta2=0.1), lengths)
        (grad,) = torch.autograd.grad(values.sum(), logp)
        assert torch.isfinite(values).all()
        assert torch.isfinite(grad).all()


def test_simnpo_of_an_answer_without_tokens_is_finite():
    logp = LOGP.clone().requires_grad_()
    values = simnpo(logp, torch.tensor([0, 3]), beta=4.5, delta=0)
    assert_close(values[1], simnpo(LOGP, ONE, beta=4.5, delta=0)[0])
    values.sum().backward()
    assert torch.isfinite(values).all()
    assert logp.grad is not None
    assert torch.isfinite(logp.grad).all()


def test_an_objective_of_your_own_by_dotted_path():
    assert OBJECTIVES.find("unlearn.objectives.nll.nll", "x") is nll
    with pytest.raises(ConfigError, match=r"x: cannot be imported \(module .* has no attribute 'nil'"):
        OBJECTIVES.find("unlearn.objectives.nll.nil", "x")


@pytest.mark.skipif(not SHARED.is_dir(), reason="needs the nano models and real TOFU (UNLEARN_SHARED)")
class TestAgainstOpenUnlearning:
    """Value and global gradient norm of its losses on fixed rows, fp32."""

    @pytest.fixture(scope="class")
    def peer(self):
        return json.loads((SHARED / "peer" / "losses.json").read_text())

    @pytest.fixture(scope="class")
    def batches(self, peer):
        tokenizer = AutoTokenizer.from_pretrained(SHARED / "models" / "nano-tofu-full")

        def of(split, rows):
            table = [json.loads(line) for line in (SHARED / "data" / "tofu" / f"{split}.json").open()]
            return collate(
                Encoder(tokenizer).pairs([(table[r]["question"], table[r]["answer"]) for r in rows])
            )

        return {"forget": of("forget10", peer["forget_rows"]), "retain": of("retain90", peer["retain_rows"])}

    @pytest.fixture(scope="class")
    def model(self):
        return self.loaded("retain90")

    @pytest.fixture(scope="class")
    def statistics(self, batches, model):
        """Of each set, of the model and of its reference."""
        reference, found = self.loaded("full"), {}
        for name, batch in batches.items():
            own = forward(model, batch)
            with torch.no_grad():
                ref_logp = forward(reference, batch).logp
            found[name] = {"logp": own.logp, "lengths": own.lengths, "ref_logp": ref_logp}
        return found

    @staticmethod
    def loaded(name):
        folder = SHARED / "models" / f"nano-tofu-{name}"
        return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)

    @pytest.mark.parametrize(
        ("entry", "terms"),
        [
            ("nll_forget", {"forget": {"objective": "nll"}}),
            ("nll_retain", {"retain": {"objective": "nll"}}),
            ("grad_ascent", {"forget": {"objective": "ascent"}}),
            ("grad_diff", {"forget": {"objective": "ascent"}, "retain": {"objective": "nll"}}),
            ("npo_beta0.1", {"forget": {"objective": "npo", "beta": 0.1}}),
            ("npo_beta0.5", {"forget": {"objective": "npo", "beta": 0.5}}),
            ("wga_beta1.0", {"forget": satimp_term(1.0, 0.0)}),
            ("wga_beta5.0", {"forget": satimp_term(5.0, 0.0)}),
            ("satimp_5.0_1.0", {"forget": satimp_term(5.0, 1.0)}),
            ("satimp_5.0_0.1", {"forget": satimp_term(5.0, 0.1)}),
            ("satimp_1.0_1.0", {"forget": satimp_term(1.0, 1.0)}),
            ("simnpo_beta4.5_delta0", {"forget": {"objective": "simnpo", "beta": 4.5, "delta": 0.0}}),
            ("simnpo_beta2.5_delta0.125", {"forget": {"objective": "simnpo", "beta": 2.5, "delta": 0.125}}),
        ],
    )
    def test_loss_and_gradient_norm(self, peer, statistics, model, entry, terms):
        bound = bind(MethodConfig(name="x", **terms))
        total = torch.stack([term.values(statistics[term.group]).mean() for term in bound]).sum()
        gradients = torch.autograd.grad(total, list(model.parameters()), retain_graph=True)
        norm = math.sqrt(sum(float(g.double().square().sum()) for g in gradients))
        wanted = peer["losses"][entry]
        # Where small errors grow: npo with β = .5 is exp(−.5·Δ) of a sum Δ of 30 to 90 nats, and the retain
        # loss is a mean of values of 1e-3. A fifth power multiplies the error of a log-probability by five:
        # there the other framework is 2e-5 off a float64 forward, and we are 2e-6. SimNPO is exp(−β·ℓ) of a
        # mean loss ℓ of 5 nats: the other is 4.8e-5 (β = 4.5) and 2.6e-5 off float64, we are 2e-6.
        grown = {
            "npo_beta0.5": 45, "nll_retain": 100, "wga_beta5.0": 5, "satimp_5.0_0.1": 5,
            "satimp_5.0_1.0": 5, "simnpo_beta4.5_delta0": 22, "simnpo_beta2.5_delta0.125": 12,
        }  # fmt: skip
        condition = grown.get(entry, 1)
        assert total.item() == approx(wanted["loss"], terms=PASS, condition=condition)
        assert norm == approx(wanted["grad_norm"], terms=PASS, condition=condition)
