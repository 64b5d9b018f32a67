"""What is done to a finished model: rounding, mixing, options, and what is remembered of a measurement."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from eval import variants
from eval.metric_catalog import info
from eval.suite import Scoring
from eval.variants import calibrated, quantisation
from eval.variants._four_bits import FP4_MAGNITUDES, NF4, coded
from eval.variants.calibrated import largest, mix
from eval.variants.quantisation import Options, linears, quantise, quantised, roundings
from tests.eval.variants.workbench import bench, llama
from tests.tolerance import PASS, approx, assert_close, relative
from unlearn import interventions
from unlearn.config import DatasetConfig, EvalConfig, MethodConfig, ModelConfig, RunConfig
from unlearn.data.batching import collate
from unlearn.errors import ConfigError, UserError
from unlearn.passes.forward import forward
from unlearn.passes.unpadded import runs_unpadded

Build = Callable[[str], PreTrainedModel]
FOUR_BITS = roundings(Options(bits=(4,)))["int4"]
CONFIG = RunConfig(
    model=ModelConfig(name="m"),
    dataset=DatasetConfig(name="d", source="authors"),
    method=MethodConfig(name="none"),
)


MEASURED = CONFIG.model_copy(update={"eval": EvalConfig(benchmarks={"tofu": {}})})


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


# -- rounding --------------------------------------------------------------------------------------------


def test_symmetric_rounding_by_hand() -> None:
    # 3 bits: −3 … 3 steps. First row: max 6, step 2; 1 ÷ 2 = 0.5 and 5 ÷ 2 = 2.5 go to the even 0 and 2.
    # Second: max 0.3, step 0.1; 0.16 ÷ 0.1 → 2.
    rows = torch.tensor([[6.0, -2.9, 1.0, 5.0], [-0.3, 0.16, 0.0, 0.04]])
    expected = torch.tensor([[6.0, -2.0, 0.0, 4.0], [-0.3, 0.2, 0.0, 0.0]])
    assert_close(quantised(rows, 3), expected)


def test_two_bits_leave_three_values() -> None:
    # One step = the row's maximum; what is nearer to 0 than half of it goes to 0.
    assert_close(quantised(torch.tensor([[4.0, 1.9, -2.1, -4.0]]), 2), torch.tensor([[4.0, 0.0, -4.0, -4.0]]))


def test_groups_have_a_scale_of_their_own_and_the_last_may_be_short() -> None:
    # 2 bits, groups of 2: maxima 8, 1 and 0.5; in one group 1 and −0.8 would vanish next to 8.
    row = torch.tensor([[8.0, 1.0, 1.0, -0.8, 0.5]])
    assert_close(quantised(row, 2, 2), torch.tensor([[8.0, 0.0, 1.0, -1.0, 0.5]]))
    assert_close(quantised(row, 2), torch.tensor([[8.0, 0.0, 0.0, 0.0, 0.0]]))


def test_asymmetric_rounding_by_hand() -> None:
    # 2 bits: four values from −1 to 2 in steps of 1, 0 among them. 0.4 → 0, 1.6 → 2.
    row = torch.tensor([[-1.0, 2.0, 0.4, 1.6]])
    assert_close(quantised(row, 2, symmetric=False), torch.tensor([[-1.0, 2.0, 0.0, 2.0]]))
    # All above 0: the range reaches down to 0, steps of 1; 3 is the fourth value.
    row = torch.tensor([[3.0, 1.2, 2.6]])
    assert_close(quantised(row, 2, symmetric=False), torch.tensor([[3.0, 1.0, 3.0]]))


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", range(2, 9))
def test_rounding_keeps_its_promises(bits: int, symmetric: bool) -> None:
    rows = torch.randn(5, 37, generator=torch.Generator().manual_seed(bits))
    rows[2] = 0
    for group in (None, 8, 37, 100):
        found = quantised(rows, bits, group, symmetric=symmetric)
        assert found.shape == rows.shape
        assert not found[2].any()
        size = group or 37
        for row, new in zip(rows, found, strict=True):
            for part, values in zip(row.split(size), new.split(size), strict=True):
                largest = 2 ** (bits - 1) - 1
                step = part.abs().max() / largest if symmetric else (
                    part.max().clamp(min=0) - part.min().clamp(max=0)
                ) / (2**bits - 1)  # fmt: skip
                assert len(values.unique()) <= (2 * largest + 1 if symmetric else 2**bits)
                # An end of the range may lie half a step outside of where the zero point lets it.
                assert (part - values).abs().max() <= step * (
                    0.5 if symmetric else 1.0
                ) + relative() * part.abs().max()
        if symmetric:  # distinct values stay distinct
            assert_close(quantised(found, bits, group), found)


def test_rounding_of_half_precision_is_made_in_full() -> None:
    rows = torch.randn(4, 16, generator=torch.Generator().manual_seed(0)).bfloat16()
    assert quantised(rows, 8).dtype == torch.float32
    assert torch.equal(quantised(rows, 8), quantised(rows.float(), 8))


def test_the_values_of_4_bit_formats_by_hand() -> None:
    # Largest magnitude 2. Halves: 0.5 is nearest to 0.24611, −0.5 to −0.52507, 0.05 to 0.07958, 0.035 to 0.
    block = torch.tensor([[0.5, -1.0, 0.1, 0.07, 2.0]])
    expected = torch.tensor([[0.4922246, -1.0501461, 0.1591606, 0.0, 2.0]])
    assert_close(coded(block, "nf4"), expected, decimals=7)
    # fp4: 0.25 and −0.5 are values; 0.05 and 0.035 are nearer to 1/192 than to 1/6.
    small = 2 / 192
    assert_close(coded(block, "fp4"), torch.tensor([[0.5, -1.0, small, small, 2.0]]))
    # 5/12 lies between 1/3 and 1/2, as far from both: the smaller magnitude, whatever the sign.
    halves = torch.tensor([[1.0, 0.75, -0.75, 5 / 12, -5 / 12]], dtype=torch.float32)
    near = coded(halves, "fp4")[0]
    assert near[1:3].tolist() == approx([2 / 3, -2 / 3])
    assert near[3] == -near[4]


def test_blocks_run_over_the_flattened_weight_and_the_last_may_be_short() -> None:
    # Blocks of 2 over the rows: maxima 8, 1 and 0.5.
    weight = torch.tensor([[8.0, 0.0, 1.0], [-1.0, 0.5, -0.5]])
    assert_close(coded(weight, "nf4", 2), weight)
    # 1 ÷ 8 lies between 0.07958 and 0.16093, nearer to the second; 0.5 is alone.
    assert_close(coded(torch.tensor([[8.0, 1.0, 0.5]]), "nf4", 2), torch.tensor([[8.0, 8 * NF4[9], 0.5]]))
    assert not coded(torch.zeros(3, 5), "nf4", 4).any()


@pytest.mark.parametrize("kind", ["nf4", "fp4"])
def test_every_weight_becomes_the_nearest_value(kind: Any) -> None:
    weight = torch.randn(7, 37, generator=torch.Generator().manual_seed(0)).bfloat16()
    signed = NF4 if kind == "nf4" else [sign * m for m in FP4_MAGNITUDES for sign in (-1, 1)]
    rounded = coded(weight, kind, 16)
    assert rounded.dtype == torch.float32
    for part, new in zip(weight.double().flatten().split(16), rounded.flatten().split(16), strict=True):
        scale = part.abs().max()
        distances = (part[:, None] - scale * torch.tensor(signed).double()[None]).abs()
        assert_close((part - new).abs().float(), distances.min(1).values.float(), scale=float(scale))


@pytest.mark.parametrize(("kind", "block"), [("nf4", 64), ("nf4", 128), ("fp4", 64), ("int", 64)])
def test_values_are_those_of_bitsandbytes(kind: Any, block: int) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed: unlearn-lab[bitsandbytes]")
    options = Options(format=kind, block=block, bits=(8,))
    (ours,) = roundings(options).values()
    ((name, theirs),) = roundings(options.model_copy(update={"library": "bitsandbytes"})).items()
    assert name == ("bnb-int8" if kind == "int" else f"bnb-{kind}")
    weight = 0.02 * torch.randn(48, 100, generator=torch.Generator().manual_seed(1))
    weight[3] = 0
    if kind == "nf4":
        assert torch.equal(ours(weight), theirs(weight))
    elif kind == "fp4":  # on a CPU its table has four decimals
        assert_close(ours(weight), theirs(weight), decimals=4)
    else:  # it takes weights in fp16, so that a few are nearer to the next step
        steps = (ours(weight) - theirs(weight)).abs() / (weight.abs().amax(1, keepdim=True) / 127 + 1e-9)
        assert steps.max() < 1.1
        assert (steps > 0.5).float().mean() < 0.05


def test_formats_are_named_and_checked() -> None:
    assert list(roundings(Options(format=("int", "nf4"), bits=(8, 4)))) == ["int8", "int4", "nf4"]
    assert variants.options_of("quantisation", {"format": "fp4"}).format == ("fp4",)
    given = {"format": ["int", "nf4"], "library": "bitsandbytes", "block": 48}
    problems = "\n".join(variants.check({"quantisation": given}, CONFIG))
    for words in ("library=bitsandbytes: its integers are rows of 8 bits", "block=48: bitsandbytes has"):
        assert f"eval.variants.quantisation.{words}" in problems
    if find_spec("bitsandbytes") is None:
        assert "pip install 'unlearn-lab[bitsandbytes]'" in problems
    (problem,) = variants.check({"quantisation": {"format": "nf5"}}, CONFIG)
    assert "eval.variants.quantisation.format" in problem


def test_linear_layers_of_every_family_and_nothing_else(family: str, tiny_model: Build) -> None:
    model = tiny_model(family)
    before = state(model)
    share = quantise(model, FOUR_BITS, Options())
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    kept = {id(head.weight), id(embeddings.weight)}
    # All matrices of the blocks, in GPT-2 transposed ones, and no embedding, norm or bias.
    matrices = {
        name
        for name, p in model.named_parameters()
        if p.ndim == 2 and id(p) not in kept and "embed" not in name and "wpe" not in name
    }
    assert changed == matrices
    counts = {name: p.numel() for name, p in model.named_parameters()}
    assert share == pytest.approx(sum(counts[name] for name in matrices) / sum(counts.values()))


def test_gpt2_has_a_scale_for_each_output_too(tiny_model: Build) -> None:
    model: Any = tiny_model("gpt2")
    weight = model.transformer.h[0].attn.c_attn.weight  # [in, out]
    before = weight.detach().clone()
    quantise(model, FOUR_BITS, Options())
    assert torch.equal(weight, quantised(before.T, 4).T)


def test_the_head_is_rounded_on_demand_unless_it_is_tied(tiny_model: Build) -> None:
    for family, tied in (("llama", False), ("qwen2", True)):
        model: Any = tiny_model(family)
        names = {name for name, module in model.named_modules() if module in set(linears(model, Options()))}
        wider = set(linears(model, Options(head=True, skip=("*mlp*",))))
        more = {name for name, module in model.named_modules() if module in wider}
        assert "lm_head" not in names
        assert ("lm_head" in more) == (not tied)
        assert any("mlp" in name for name in names)
        assert not any("mlp" in name for name in more)


def test_small_edits_stay_and_the_second_model_of_a_contrast_does_not(tiny_model: Build) -> None:
    grun: Any = tiny_model("llama")
    interventions.make({"name": "grun", "layers": [0], "width": 8}, hidden_size=32, layers=2).attach(grun)
    plain = len(list(linears(tiny_model("llama"), Options())))
    assert len(list(linears(grun, Options()))) == plain
    contrast: Any = tiny_model("llama")
    second = tiny_model("llama")
    interventions.make({"name": "contrast"}, hidden_size=32, layers=2, reinforced=second).attach(contrast)
    found = list(linears(contrast, Options()))
    assert len(found) == 2 * plain  # neither of the two heads
    assert second.get_output_embeddings() not in found


@pytest.mark.slow
def test_fewer_bits_change_the_metrics_more(tmp_path: Path) -> None:
    work = bench(tmp_path)
    plain = work.score(llama(), "plain", ["forget"])
    options = {"bits": [8, 2], "format": ["int", "nf4"], "roles": ["forget"]}
    metrics = variants.measure("quantisation", work, options)
    assert 0 < metrics["quantisation/share"] < 1
    key = "tofu/forget/probability"
    eight, two = (abs(metrics[f"quantisation/int{bits}/{key}"] - plain[key]) for bits in (8, 2))
    assert eight < two
    model = llama()
    quantise(model, lambda weight: coded(weight, "nf4"), Options())
    assert metrics[f"quantisation/nf4/{key}"] == work.score(model, "coded", ["forget"])[key] != plain[key]
    assert not any("retain" in name for name in metrics)


# -- mixing ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("truth", "expected"), [(1.0, 1.0), (0.7, 0.6875), (0.5, 0.5), (0.01, 0.0)])
def test_bisection_finds_the_largest_that_holds(truth: float, expected: float) -> None:
    # Four passes: sixteenths. 0.7 lies between 11/16 = 0.6875 and 12/16.
    asked: list[float] = []

    def holds(alpha: float) -> bool:
        asked.append(alpha)
        return alpha <= truth

    assert largest(holds, 4) == expected
    assert len(asked) == (1 if truth == 1 else 5)
    assert 0.0 not in asked  # the target itself holds


def test_mixing_by_hand_and_ties_once() -> None:
    one, other = llama(1), llama(2)
    expected = {n: 0.25 * t + 0.75 * other.state_dict()[n] for n, t in state(one).items()}
    mix(one, other, 0.25)
    assert_close(state(one), expected)
    assert one.lm_head.weight is one.model.embed_tokens.weight


def test_a_bf16_mixture_lies_between_models_that_are_one_step_apart() -> None:
    step = 2.0**-7  # of bf16 at 1

    def share_moved(alpha: float) -> torch.Tensor:
        unlearned, target = (torch.nn.Linear(200, 100, dtype=torch.bfloat16) for _ in range(2))
        with torch.no_grad():
            target.weight.fill_(1.0)
            unlearned.weight.fill_(1.0 + step)
            unlearned.bias.copy_(target.bias)
        bias = target.bias.detach().clone()
        mix(unlearned, target, alpha)
        assert torch.equal(unlearned.bias, bias)  # what is the same stays
        moved = (unlearned.weight.detach().float() - 1) / step
        assert ((moved == 0) | (moved == 1)).all()
        return moved.bool()

    shares = {alpha: share_moved(alpha) for alpha in (0.25, 0.5, 0.75)}
    for alpha, moved in shares.items():
        # A binomial share of 20,000 numbers, within five standard deviations.
        assert abs(moved.float().mean().item() - alpha) < 5 * (alpha * (1 - alpha) / moved.numel()) ** 0.5
    assert (shares[0.25] <= shares[0.5]).all()  # a larger α moves the same numbers and more
    assert (shares[0.5] <= shares[0.75]).all()
    assert not share_moved(0.0).any()
    assert share_moved(1.0).all()


def test_the_ends_are_the_models_themselves() -> None:
    for alpha, source in ((1.0, 1), (0.0, 2)):
        model = llama(1)
        mix(model, llama(2), alpha)
        wanted = state(llama(source))
        assert all(torch.equal(tensor, wanted[name]) for name, tensor in state(model).items())


def test_models_that_cannot_be_mixed_are_refused(tiny_model: Build) -> None:
    with pytest.raises(UserError, match="they differ in"):
        mix(tiny_model("llama"), tiny_model("gpt2"), 0.5)
    edited: Any = tiny_model("llama")
    interventions.make({"name": "contrast"}, hidden_size=32, layers=2, reinforced=tiny_model("llama")).attach(
        edited
    )
    with pytest.raises(UserError):
        mix(edited, tiny_model("llama"), 0.5)
    method = MethodConfig(name="whp", intervention={"name": "contrast"})
    (problem,) = variants.check({"calibrated": None}, CONFIG.model_copy(update={"method": method}))
    assert "method whp" in problem


class Retention:
    """Models differ in one weight, α; the retention falls with its square."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, tuple[str, ...], str | None]] = []

    def __call__(
        self, model: Any, label: str, roles: Any, *, only: str | None = None, **_: Any
    ) -> dict[str, float]:
        alpha = model.weight.item()
        self.asked.append((label, tuple(roles), only))
        kept = {"tofu/retain/extraction_strength": 0.8 * (1 - alpha**2 / 2)}
        return kept | ({} if roles == ("retain",) else {"tofu/forget/probability": 1 - alpha})


def line(value: float) -> Callable[[], nn.Module]:
    def build() -> nn.Module:
        made = nn.Linear(1, 1, bias=False)
        nn.init.constant_(made.weight, value)
        return made

    return build


def calibrate(directory: Path, score: Any, **other: Any) -> dict[str, float]:
    """θ is α itself: the unlearned model has the weight 1, the target 0."""
    given = {"share": 0.9} | other.pop("options", {})
    work = bench(directory, unlearned=line(1.0), target=line(0.0), score=score, **other)
    return variants.measure("calibrated", work, given)


def test_calibration_stops_where_enough_is_kept(tmp_path: Path) -> None:
    # 1 − α²/2 ≥ 0.9 up to α = √0.2 = 0.4472; in 64ths 28/64 = 0.4375, where 1 − 0.4375²/2 = 0.904297.
    score = Retention()
    metrics = calibrate(tmp_path, score, target_results={"tofu/retain/extraction_strength": 0.8})
    assert metrics == approx(
        {
            "calibrated/alpha": 0.4375,
            "calibrated/retention": 0.904297,
            "calibrated/tofu/retain/extraction_strength": 0.8 * 0.904297,
            "calibrated/tofu/forget/probability": 0.5625,
        },
        decimals=6,
    )
    *probes, (label, roles, only) = score.asked
    assert [label for label, *_ in probes[:3]] == [f"calibrated/probe-{a}" for a in (1.0, 0.5, 0.25)]
    assert all(asked[1:] == (("retain",), "tofu/retain/extraction_strength") for asked in probes)
    assert len(probes) == 7
    assert (label, "forget" in roles, only) == ("calibrated/0.4375", True, None)


def test_calibration_takes_what_is_known(tmp_path: Path) -> None:
    # Without the target's results it is asked for itself; the run's own tell what α = 1 keeps: here enough.
    score = Retention()
    own = {"tofu/retain/extraction_strength": 0.79, "tofu/forget/probability": 0.1, "train/loss": 3.0}
    metrics = calibrate(tmp_path, score, results=own)
    assert metrics == pytest.approx(
        {
            "calibrated/alpha": 1.0,
            "calibrated/retention": 0.79 / 0.8,
            "calibrated/tofu/retain/extraction_strength": 0.79,
            "calibrated/tofu/forget/probability": 0.1,
        }
    )
    assert [label for label, *_ in score.asked] == ["calibrated/probe-0.0"]


def test_nothing_kept_leaves_the_target(tmp_path: Path) -> None:
    # Retention 1 of the target's from α = 0 on only: below 1/4, two passes end at 0.
    target = {"tofu/retain/extraction_strength": 0.8, "tofu/forget/probability": 0.97}
    options = {"share": 1.0, "passes": 2}
    metrics = calibrate(tmp_path, Retention(), options=options, target_results=target)
    assert metrics["calibrated/alpha"] == 0
    assert metrics["calibrated/retention"] == 1
    assert metrics["calibrated/tofu/forget/probability"] == 0.97


def test_calibration_says_what_is_amiss(tmp_path: Path) -> None:
    for number, (target, options, words) in enumerate(
        (
            ({"tofu/retain/extraction_strength": 0.0}, {}, "is 0.0, of which no share"),
            ({"tofu/retain/extraction_strength": math.nan}, {}, "metric is not set"),
            (
                {"tofu/retain/extraction_strength": 0.8},
                {"metric": "mmlu/accuracy"},
                "mmlu/accuracy: the bench",
            ),
        )
    ):
        with pytest.raises(UserError, match=words):
            calibrate(tmp_path / str(number), Retention(), options=options, target_results=target)


def test_selection_items_have_a_calibration_of_their_own(tmp_path: Path) -> None:
    # The selection items keep less: 1 − α² ≥ 0.9 up to α = 0.316; in quarters 0.25, where it is 0.9375.
    class Steeper(Retention):
        def __call__(self, model: Any, label: str, roles: Any, **other: Any) -> dict[str, float]:
            super().__call__(model, label, roles)
            alpha = model.weight.item()
            return {"tofu/retain/extraction_strength": 1 - alpha**2, "tofu/forget/probability": alpha}

    steeper, options = Steeper(), {"passes": 2}
    work = bench(tmp_path, unlearned=line(1.0), target=line(0.0), score=steeper)
    target = {"tofu/retain/extraction_strength": 0.8}
    metrics = calibrate(tmp_path, Retention(), target_results=target, options=options, selecting=work)
    assert metrics["calibrated/alpha"] == metrics["calibrated/selection/alpha"] == 0.25
    assert metrics["calibrated/retention"] == approx(1 - 0.25**2 / 2)
    assert metrics["calibrated/selection/retention"] == approx(1 - 0.25**2)
    assert metrics["calibrated/tofu/forget/probability"] == 0.75
    assert metrics["calibrated/selection/tofu/forget/probability"] == 0.25
    assert {label.rpartition("/")[0] for label, *_ in steeper.asked} == {"calibrated/selection"}
    key = "calibrated/selection/tofu/forget/probability"
    assert info(key).variant == "calibrated/selection"
    assert info(key).plain == "tofu/forget/probability"
    assert info("calibrated/selection/alpha").variant == ""


def test_a_model_without_a_target_is_not_calibrated(tmp_path: Path) -> None:
    assert variants.measure("calibrated", bench(tmp_path)) == {}


@pytest.mark.slow
def test_calibration_of_a_real_model(tmp_path: Path) -> None:
    """At the α that is found the retain set is as likely as was asked for, counted by hand."""

    def broken() -> Any:  # an unlearned model that is sure of what is wrong
        model = llama(1)
        model.model.norm.weight.data.mul_(-40.0)
        return model

    def whole() -> Any:  # the target
        model = llama(1)
        model.model.norm.weight.data.mul_(4.0)
        return model

    work = bench(tmp_path, unlearned=broken, target=whole)
    options = {"share": 0.9, "metric": "tofu/retain/probability", "passes": 3}
    metrics = variants.measure("calibrated", work, options)

    def probability(model: Any) -> float:
        pairs = [(e.question, e.answer) for e in work.sets["retain_eval"]]
        found = []
        for sequence in work.encoder.pairs(pairs):
            with torch.no_grad():
                found.append(float(forward(model, collate([sequence])).logp.mean().exp()))
        return sum(found) / len(found)

    def mixture(alpha: float) -> float:
        model = broken()
        mix(model, whole(), alpha)
        return probability(model) / probability(whole())

    alpha = metrics["calibrated/alpha"]
    assert 0 <= alpha < 1
    assert mixture(alpha) >= 0.9 > mixture(alpha + 1 / 8)
    assert metrics["calibrated/retention"] == approx(mixture(alpha), terms=PASS)
    assert metrics["calibrated/tofu/retain/probability"] == approx(
        mixture(alpha) * probability(whole()), terms=PASS
    )
    assert "calibrated/tofu/forget/rougeL_recall" in metrics


# -- options, and what is remembered ---------------------------------------------------------------------


def test_options_are_checked_by_name() -> None:
    chosen: dict[str, Any] = {
        "quantisation": {"bits": [1, 4], "group": 0},
        "relearning": {"share": 2, "stepz": [1], "steps": "many"},
        "calibrated": {"passes": 0, "share": "x"},
        "quantization": None,
    }
    found = "\n".join(variants.check(chosen, CONFIG))
    for words in (
        "eval.variants.quantisation.bits=[1, 4]: give",
        "eval.variants.quantisation.group=0",
        "eval.variants.relearning.stepz=[1]: variant relearning has no option stepz (did you mean steps?)",
        "eval.variants.relearning.steps='many'",
        "eval.variants.calibrated.share='x'",
        "eval.variants.quantization: no such variant (did you mean quantisation?)",
    ):
        assert words in found
    chosen = {"relearning": {"steps": [0], "share": 2, "lr": 0, "text": "/no/file.txt"}}
    found = "\n".join(variants.check(chosen, CONFIG))
    for words in ("steps=[0]", "share=2.0", "lr=0.0", "text=/no/file.txt: there is no such file"):
        assert f"eval.variants.relearning.{words}" in found
    assert variants.check(dict.fromkeys(variants.VARIANTS.names()), CONFIG) == []
    assert variants.sets(["relearning", "calibrated"]) == {"forget"}
    with pytest.raises(ConfigError):
        variants.measure("quantisation", None, {"bit": 3})  # type: ignore[arg-type]


def test_options_come_in_their_types() -> None:
    assert variants.options_of("quantisation", {"bits": [3], "skip": ["x"]}) == quantisation.Options(
        bits=(3,), skip=("x",)
    )
    assert variants.options_of("calibrated", {"share": 1}) == calibrated.Options(share=1.0)


def test_a_measurement_is_remembered_as_long_as_it_is_the_same(tmp_path: Path) -> None:
    def run(**options: Any) -> tuple[dict[str, float], int]:
        score = Retention()
        target = {"tofu/retain/extraction_strength": 0.8}
        return calibrate(tmp_path, score, options=options, target_results=target), len(score.asked)

    first, calls = run()
    assert calls == 8
    assert run() == (first, 0)
    (tmp_path / "eval" / "calibrated" / "records").mkdir()
    other, calls = run(share=0.8)
    assert calls == 8
    assert other != first
    assert not (tmp_path / "eval" / "calibrated" / "records").exists()  # of models of another share


def test_other_questions_or_sets_are_measured_again_with_what_is_there(tmp_path: Path) -> None:
    target = {"tofu/retain/extraction_strength": 0.8}
    first, again = Retention(), Retention()
    calibrate(tmp_path, first, target_results=target, questions="before")
    (tmp_path / "eval" / "calibrated" / "records").mkdir()
    calibrate(tmp_path, again, target_results=target, questions="after")
    assert again.asked == first.asked
    assert (tmp_path / "eval" / "calibrated" / "records").exists()
    made = bench(tmp_path, unlearned=llama)
    less = variants.measure("quantisation", made, {"bits": [8], "roles": ["forget"]})
    more = variants.measure("quantisation", made, {"bits": [8]})
    assert less.keys() < more.keys()


def test_a_variant_of_a_package_has_the_folder_of_its_own_name() -> None:
    assert variants.folder_of("my_package.noisy", Path("eval")) == Path("eval/noisy")


def test_what_is_kept_is_told_by_a_metric_that_is_better_if_higher() -> None:
    for metric, words in (
        ("tofu/forget/probability", "does not say what is kept"),
        ("tofu/retain/truth", "with their options, give no such number"),
        ("tofu/retain/probability", ""),
    ):
        problems = variants.check({"calibrated": {"metric": metric}}, MEASURED)
        assert words in "".join(problems)
        assert bool(problems) is bool(words)


def test_one_benchmark_that_fails_does_not_keep_the_others(tmp_path: Path) -> None:
    score = bench(tmp_path).score
    assert isinstance(score, Scoring)
    two = replace(score, benchmarks={"sampling": {"ks": [99]}, **score.benchmarks})
    with pytest.raises(UserError, match=r"(?s)^benchmark sampling: .*ks="):
        two(llama(), "both", ["forget"])
    assert (tmp_path / "eval" / "both" / "tofu" / "results.json").is_file()


def test_roles_choose_sets_and_a_metric_asks_for_no_more_than_it_needs(tmp_path: Path) -> None:
    score, read = bench(tmp_path).score, []
    assert isinstance(score, Scoring)
    score = replace(score, benchmarks={"sampling": {}, **score.benchmarks})
    model = llama()
    runs_unpadded(model)  # its trial is not counted
    model.register_forward_pre_hook(
        lambda _, args, kwargs: read.append((args[0] if args else kwargs["input_ids"]).numel()),
        with_kwargs=True,
    )
    whole = score(model, "whole", ["retain", "forget"])
    every = sum(read)
    assert {key.split("/")[0] for key in whole} == {"sampling", "tofu"}
    for metric in ("probability", "extraction_strength", "exact_memorization"):
        read.clear()
        alone = score(model, metric, ["retain"], only=f"tofu/retain/{metric}")
        assert {key.split("/")[1] for key in alone} == {"retain"}
        assert alone[f"tofu/retain/{metric}"] == approx(whole[f"tofu/retain/{metric}"], terms=PASS)
        assert len(read) == 1  # nothing is generated
        assert 4 * sum(read) < every  # and no wrong answer is read
    both = replace(score, benchmarks={"wmdp": {}, **score.benchmarks})
    assert both._for("mmlu/accuracy").benchmarks == {"wmdp": {}}  # it declares the key, of another name
    ratio = score(model, "ratio", ["retain"], only="tofu/retain/truth_ratio")
    assert ratio["tofu/retain/truth_ratio"] == approx(whole["tofu/retain/truth_ratio"], terms=PASS)
