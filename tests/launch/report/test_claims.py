"""`unlearn claims`: differences and verdicts by hand, the page from small runs, and what is no evidence."""

from __future__ import annotations

import gzip
import json
import math
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from eval.metric_catalog import can_be, declarations
from launch.config_groups import groups
from launch.report.claims import definitions, published
from launch.report.claims.budget import made, repeated
from launch.report.claims.command import main
from launch.report.claims.definitions import Claims, Level
from launch.report.claims.figures import differences, trade_off
from launch.report.claims.page import page, summary
from launch.report.claims.trial import Difference, difference, holm, judged, spread
from launch.report.claims.verdicts import LIKELIHOODS, Trial, by_definition, of_likelihood, tasks, tried
from launch.report.geffect.run_effects import effects
from launch.report.kept import KeptRun, read, read_archive, write_archive
from launch.report.statistics import rank_correlation
from tests.launch.report import compare_files
from tests.paths import ROOT
from unlearn.config import MethodConfig, RunConfig
from unlearn.errors import UserError

LEFT, KEPT = "calibrated/tofu/forget/extraction_strength", "tofu/retain/extraction_strength"
CHOOSE, PLAIN = "calibrated/selection/tofu/forget/extraction_strength", "tofu/forget/extraction_strength"
STEPS = {"train/steps": 50.0, "run/seconds": 30.0, "calibrated/alpha": 0.75}
TWO_METHODS = Claims.model_validate(
    {
        "arms": {"A": {"where": {"method": "satimp"}}, "B": {"where": {"method": "npo"}}},
        "claims": [
            {
                "id": "a-b", "paper": "P (2505.11953)", "claim": "A forgets more", "where": "table 1",
                "run": "experiment=claims", "changes": "more seeds", "figure": "trade-off",
                "comparisons": [{"of": "A", "than": ["B"]}],
            }
        ],
    }
)  # fmt: skip


# -- numbers -----------------------------------------------------------------------------------------------


def test_a_paired_difference_by_hand() -> None:
    # Mean 2, standard deviation 1: half = 4.3026527 / √3. Of two degrees of freedom p = 1 − t / √(t² + 2).
    each = difference("x", [1.0, 2.0, 3.0])
    assert (each.mean, each.n) == (2, 3)
    assert each.half == pytest.approx(4.302652729911275 / math.sqrt(3))
    t = 2 * math.sqrt(3)
    assert each.against == 1
    assert difference("x", [-1.0, -2.0, -3.0]).against == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert difference("x", [1.0, 2.0, 3.0], least=4.0).against == pytest.approx(1 - t / math.sqrt(t**2 + 2))
    assert difference("x", [1.0, 2.0, 3.0], least=2.0).against == 1
    same = difference("x", [0.5, 0.5], least=0.6)
    assert (same.low, same.high, same.against) == (0.5, 0.5, 0)


def test_what_is_no_difference_says_why() -> None:
    assert "at least two are needed" in difference("x", [1.0]).missing
    assert difference("x", [1.0, math.nan, 2.0]).missing == "1 of 3 values are not finite"
    assert difference("x", [1.0]).against == 1


def test_holm_by_hand() -> None:
    # Ordered .01·3, .03·2, .04·1, and none below the one before it.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_spread_and_rank_correlation_by_hand() -> None:
    assert spread([0.2, 0.7, 0.4]) == pytest.approx(0.5)
    # Squared differences of ranks 1 + 1 of four: 1 − 6·2/(4·15).
    assert rank_correlation([1, 2, 3, 4], [1, 3, 2, 4]) == pytest.approx(0.8)
    assert math.isnan(rank_correlation([1, 2, 3], [5, 5, 5]))


def sure(mean: float, least: float = 0.0) -> Difference:
    return Difference(f"{mean:+}", mean, 0.1, 5, least)


@pytest.mark.parametrize(
    ("differences", "verdict", "words"),
    [
        ([sure(0.5), sure(0.3)], "holds", "all 2 intervals are above 0"),
        ([sure(-0.04, -0.2)], "holds", "the interval is above -0.2"),
        ([sure(0.5), sure(-0.5)], "does not hold", "1 of 2 against it: -0.5"),
        ([sure(0.5, 1.0)], "does not hold", "1 of 1 against it"),
        ([sure(0.5), sure(0.05)], "cannot tell", "1 of 2 intervals not above 0: +0.05"),
        ([sure(0.5), Difference("x", missing="no runs of B")], "cannot tell", "x: no runs of B"),
        # One that is against it is enough, whatever is missing.
        ([sure(-0.5), Difference("x", missing="no runs of B")], "does not hold", "1 of 2 against it"),
        ([], "cannot tell", "nothing to compare"),
    ],
)
def test_verdicts(differences: list[Difference], verdict: str, words: str) -> None:
    outcome = judged(differences)
    assert outcome.verdict == verdict
    assert words in outcome.reason


def test_a_contradiction_is_adjusted_for_the_number_of_comparisons() -> None:
    # p of −0.1 ± 0.09 at five seeds is 0.037: against a claim by itself, one of nine comparisons is not.
    weak = Difference("weak", -0.1, 0.09, 5)
    assert 0.03 < weak.against < 0.05
    assert judged([weak]).verdict == "does not hold"
    assert judged([weak, *[sure(0.5)] * 8]).verdict == "cannot tell"


def test_weights_of_tokens_need_no_run() -> None:
    weights = next(claim.weights for claim in definitions.load().claims if claim.weights)
    assert by_definition(weights).verdict == "holds"
    turned = [each.model_copy(update={"sign": -each.sign}) for each in weights]
    assert by_definition(turned).verdict == "does not hold"
    # At a likelihood of 0.5 the fifth power of both.
    for each in weights:
        if each.options["beta"] == 5:
            assert of_likelihood(each)[LIKELIHOODS.index(0.5)] == pytest.approx(0.5**5)


def test_what_the_probe_logged_becomes_one_number() -> None:
    history: list[dict[str, Any]] = [{"step": 1, "loss": 3.0}]
    for step, (effect, risk, retain) in enumerate([(-1.0, 0.1, 0.5), (-4.0, 2.0, -1.0), (-2.0, 1.0, -0.5)]):
        part = 0.9 if step == 1 else 0.6  # a mean over measurements, whatever their size
        groups_of = {"geffect/unlearn/shallow": part * effect, "geffect/unlearn/deep": (1 - part) * effect}
        own = {"geffect/unlearn": effect, "geffect/risk_forget": risk, "geffect/retain": retain}
        history.append({"step": step + 2, **own, **groups_of})
    values = effects(history)
    assert values["geffect/largest"] == 4
    assert values["geffect/rank_with_risk"] == pytest.approx(1)
    assert values["geffect/share/shallow"] == pytest.approx(0.7)
    assert values["geffect/share/middle"] == 0
    assert values["geffect/harmful"] == pytest.approx(2 / 3)
    assert effects(history[:1]) == {}
    of_layer = effects(history, {"shallow": 2, "deep": 1})
    assert of_layer["geffect/share_of_layer/shallow"] == pytest.approx(0.35)
    assert of_layer["geffect/share_of_layer/deep"] == pytest.approx(0.3)


# -- the claims --------------------------------------------------------------------------------------------


def test_every_claim_names_what_there_is() -> None:
    claims = definitions.load()
    assert len({claim.id for claim in claims.claims}) == len(claims.claims)
    known, bibliography = groups(), (ROOT / "launch/commands/papers.bib").read_text(encoding="utf-8")
    keys = [key for metrics in declarations() for key in metrics]
    for claim in claims.claims:
        for name in re.findall(r"experiment=([\w-]+)", claim.run):
            assert name in known["experiment"], claim.id
        assert set(re.findall(r"\d{4}\.\d{5}", claim.paper)) <= set(re.findall(r"\d{4}\.\d{5}", bibliography))
        metrics = [claim.metric, *(each.metric for each in claim.comparisons if each.metric)]
        for metric in metrics:
            plain = metric.removeprefix("calibrated/")
            assert metric.startswith("geffect/") or can_be(plain, keys), metric
    sections = {"method": MethodConfig, "model": RunConfig}
    for name, arm in claims.arms.items():
        assert arm.where["method"] in [*known["method"], "weighting"], name
        for key in [*arm.where, *arm.choose]:
            head, *rest = key.split(".")
            assert head in sections, name
            assert not rest or rest[0] in MethodConfig.model_fields, name


def test_make_claims_makes_the_runs_of_every_claim() -> None:
    lines = re.findall(r"\$\(CLAIMS_RUN\) (.*)", (ROOT / "Makefile").read_text(encoding="utf-8"))
    named = {run for claim in definitions.load().claims for run in claim.run.split(", ")}
    assert {run for run in named if run.startswith("experiment=")} <= set(lines)


def test_an_arm_that_does_not_exist_is_refused() -> None:
    values = TWO_METHODS.model_dump()
    values["claims"][0]["comparisons"][0]["than"] = ["C"]
    with pytest.raises(ValueError, match="a-b: no such arm: C"):
        Claims.model_validate(values)


def test_published_figures_have_presets_and_a_card() -> None:
    text = published.section()
    made = published.load()
    assert made.shapes["Llama-2-7B"].shape().parameters == 6_738_415_616  # of its checkpoint
    for group in made.groups:
        for row in group.rows:
            assert row.preset in groups()["method"]
            assert row.figures in text
            assert len(row.figures.split(", ")) == len(group.measures.split(", "))
    assert text.count("Published, not tried here. Source") == len(made.groups)
    # 130 steps of 32 texts of 100 tokens: 6·6.738e9·416,000 operations at 0.4·312e12 in a second.
    assert "| GA | 1.06e-239, 0, 2.21e-32 | `grad_ascent` | 1 × 80 GiB | `gpu-80gb` | 0.037 |" in text


# -- runs ----------------------------------------------------------------------------------------------------


def write_run(
    path: Path, *, method: str = "npo", keys: dict[str, Any] | None = None, **more: Any
) -> Path:  # fmt: skip
    """Write a run with the weight of retaining and the exponents that the preset has."""
    forget = {"weighting": {"beta1": 5, "beta2": 0.1}} if method == "satimp" else {"beta": 0.1}
    own = {"retain_weight": 0.1 if method == "satimp" else 1.0, "forget": forget} | (keys or {})
    return compare_files.write_run(path, method=method, keys=own, **more)


def results(left: float, selected: float, kept: float = 0.95, **more: float) -> dict[str, float | None]:
    return {LEFT: left, CHOOSE: selected, KEPT: kept, PLAIN: left, **STEPS, **more}


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Three seeds of two methods at two rates; the rate that does best on selection items is not the best."""
    folder = tmp_path / "runs"
    for seed in range(3):
        write_run(folder / f"a{seed}", method="satimp", seed=seed, results=results(0.10 + 0.01 * seed, 0.1))
        write_run(folder / f"a{seed}-high", method="satimp", seed=seed, lr=1e-4, results=results(0.02, 0.3))
        write_run(folder / f"b{seed}", method="npo", seed=seed, results=results(0.30 + 0.02 * seed, 0.2))
    write_run(folder / "t", method="none", role="evaluate the target", results=results(1.0, 1.0, 1.0))
    write_run(folder / "ft", method="finetune", role="build the target", results={"run/seconds": 60.0})
    return folder


def trials_of(*arguments: Path) -> list[Trial]:
    return tried(TWO_METHODS, tasks(read([str(each) for each in arguments])[0]))


def test_a_rate_is_chosen_on_the_selection_items_and_the_rest_is_reported(runs: Path) -> None:
    (trial,) = trials_of(runs)
    (each,) = trial.outcome.differences
    assert trial.chosen == {"A": "lr 1e-05", "B": "lr 1e-05"}
    assert each.mean == pytest.approx(0.21)  # 0.20, 0.21 and 0.22; at the other rate 0.30
    assert each.half == pytest.approx(4.302652729911275 * 0.01 / math.sqrt(3))
    assert trial.outcome.verdict == "holds"


def test_what_the_choice_by_selection_items_decides_is_said(runs: Path) -> None:
    (own,) = trials_of(runs)
    assert own.kindest == "holds"  # so the page says nothing
    for seed in range(3):  # by the reported items B has a better rate than those of A
        reported = results(0.01 + 0.001 * seed, 0.9)
        write_run(runs / f"b{seed}-low", seed=seed, lr=1e-6, results=reported)
    (trial,) = trials_of(runs)
    assert (trial.outcome.verdict, trial.kindest) == ("holds", "does not hold")
    assert trial.task is not None
    shown = page([trial], [trial.task], trial.task.runs, {}, [], "")
    assert "With settings chosen by the reported items themselves: does not hold. Settings:" in shown


def test_what_is_left_is_shown_next_to_what_a_retain_model_leaves(runs: Path) -> None:
    (alone,) = trials_of(runs)
    assert not alone.outcome.differences[0].beyond
    write_run(runs / "r", method="none", role="evaluate the retain model", results=results(0.35, 0.3, 1.0))
    (trial,) = trials_of(runs)
    assert trial.task is not None
    shown = page([trial], [trial.task], trial.task.runs, {}, [], "")
    assert "| authors forget10 × nano | target | 1.0000 | 1.0000 | – |" in shown
    assert "| authors forget10 × nano | retain model | 0.3500 | 1.0000 | – |" in shown
    assert "| A against B | 0.1100 / 0.3200 † | +0.000 (+0.000 to +0.000) |" in shown  # both below 0.35
    assert (trial.outcome.verdict, alone.outcome.verdict) == ("cannot tell", "holds")


def test_less_than_the_retain_model_of_a_seed_leaves_counts_as_that(tmp_path: Path) -> None:
    floors = [0.05, 0.30, 0.50]
    for seed, floor in enumerate(floors):
        data = {"options": {"seed": seed, "authors": 40}}
        for method, left in (("satimp", 0.1), ("npo", 0.4)):
            name = f"{method}{seed}"
            write_run(tmp_path / name, method=method, seed=seed, dataset=data, results=results(left, left))
        anchor = {PLAIN: floor, "tofu/model_utility": 0.5 + 0.1 * seed}
        for role in ("evaluate the retain model", "evaluate the target"):
            write_run(tmp_path / f"{role}{seed}", method="none", role=role, dataset=data, results=anchor)
    (trial,) = trials_of(tmp_path)
    (each,) = trial.outcome.differences
    assert each.means == pytest.approx((0.1, 0.4))
    # 0.4 − 0.1 where the floor is below both, 0.4 − 0.3 where it is between, 0 where it is above.
    assert each.mean == pytest.approx((0.3 + 0.1 + 0) / 3)
    assert not each.beyond


def test_an_arm_is_compared_with_the_target_of_its_seed(tmp_path: Path) -> None:
    utility = "tofu/model_utility"
    for seed in range(3):
        data = {"options": {"seed": seed, "authors": 40}}
        for method, loss in (("satimp", 0.01 * seed), ("npo", 0.3)):
            own = results(0.1, 0.1, **{utility: 0.5 + 0.1 * seed - loss})
            write_run(tmp_path / f"{method}{seed}", method=method, seed=seed, dataset=data, results=own)
        own = {utility: 0.5 + 0.1 * seed}
        write_run(tmp_path / f"t{seed}", method="none", role="evaluate the target", dataset=data, results=own)
    values = TWO_METHODS.model_dump()
    values["claims"][0] |= {
        "metric": utility,
        "better": "higher",
        "comparisons": [
            {"of": "A", "than": ["the target"], "least": -0.05},
            {"of": "the target", "than": ["B"], "least": 0.05},
        ],
    }
    (trial,) = tried(Claims.model_validate(values), tasks(read([str(tmp_path)])[0]))
    keeps, loses = trial.outcome.differences
    assert keeps.label == "A against the target"
    assert keeps.mean == pytest.approx(-0.01)
    assert loses.mean == pytest.approx(0.3)
    assert trial.outcome.verdict == "holds"
    values["claims"][0]["comparisons"][0]["least"] = 0.05  # A is not better than the target
    (trial,) = tried(Claims.model_validate(values), tasks(read([str(tmp_path)])[0]))
    assert trial.outcome.verdict == "does not hold"


def test_a_verdict_with_a_rate_at_an_end_is_marked(runs: Path) -> None:
    def verdicts() -> str:
        (trial,) = trials_of(runs)
        assert trial.task is not None
        return summary([trial], [trial.task])

    assert "| holds ‡ |" in verdicts()  # the smaller one of A's two rates
    for seed in range(3):
        write_run(runs / f"a{seed}-low", method="satimp", seed=seed, lr=1e-6, results=results(0.2, 0.4))
    assert "| holds |" in verdicts()


def test_numbers_at_an_end_of_those_tried_are_named(tmp_path: Path) -> None:
    for seed in range(2):
        for weight, selected in ((0.1, 0.1), (1.0, 0.2), (10.0, 0.3)):
            write_run(
                tmp_path / f"{seed}-{weight}", method="satimp", seed=seed, keys={"retain_weight": weight},
                results=results(0.1, selected, **{"calibrated/retention": 0.96}),
            )  # fmt: skip
        write_run(tmp_path / f"b{seed}", seed=seed, results=results(0.3, 0.2))
        for weight, lr in ((0.1, 3e-5), (1.0, 1e-6)):  # the smallest rate with one of the weights alone
            write_run(
                tmp_path / f"{seed}-{lr}", method="satimp", seed=seed, keys={"retain_weight": weight}, lr=lr,
                results=results(0.1, 0.9, **{"calibrated/retention": 0.96}),
            )  # fmt: skip
    any_weight = {"where": {"method": "satimp"}, "choose": ["method.retain_weight"]}
    raw = TWO_METHODS.model_dump()
    claims = Claims.model_validate({**raw, "arms": {**raw["arms"], "A": any_weight}})
    every = tasks(read([str(tmp_path)])[0])
    shown = page(tried(claims, every), every, every[0].runs, {}, [], "")
    ends = "the smallest rate, the smallest retain_weight"
    assert f"A lr 1e-05, retain_weight 0.1 (of 5, {ends}, α 0.75, keeps 0.960)" in shown


def test_the_page_from_runs_and_from_their_archive(runs: Path, tmp_path: Path, capsys: Any) -> None:
    kept = tmp_path / "kept.json.gz"
    assert main([str(runs), "--out", str(tmp_path / "one" / "claims.md"), "--keep", str(kept)]) == 0
    assert main([str(kept), "--out", str(tmp_path / "two" / "claims.md")]) == 0
    first, second = ((tmp_path / name / "claims.md").read_text(encoding="utf-8") for name in ("one", "two"))
    assert first == second
    claim = first.partition("### satimp-a")[2].partition("### satimp-b")[0]
    assert "| SatImp against NPO | 0.1100 / 0.3200 | +0.210 (+0.185 to +0.235) | 0 | 3 |" in claim
    assert "**authors forget10 × nano: cannot tell** – SatImp against SimSat: no runs of SimSat" in claim
    assert (
        "Settings: SatImp lr 1e-05 (of 2, the smallest rate, α 0.75); NPO lr 1e-05 (the only one, α 0.75)."
        in claim
    )
    assert "| cannot tell (1 of 1 above, 7 missing) |" in first
    assert "| [lume](#lume) |" in first
    assert "cannot tell (no runs)" in first
    assert "| authors forget10 × nano | 9: 2 methods, 2 learning rates, 3 seeds | 5 |" in first
    assert "| targets and retain models | 1 trainings | 1 |" in first
    picture = tmp_path / "one" / "images" / "claims" / "satimp-a.svg"
    assert "images/claims/satimp-a.svg" in claim
    assert picture.read_text(encoding="utf-8").count('r="7"') == 2  # the chosen settings
    assert picture.read_bytes() == (tmp_path / "two" / "images" / "claims" / "satimp-a.svg").read_bytes()
    assert "no runs, so cannot tell:" in capsys.readouterr().out
    write_archive(tmp_path / "again.json.gz", read_archive(kept))
    assert (tmp_path / "again.json.gz").read_bytes() == kept.read_bytes()


def test_differences_are_drawn_with_their_intervals(runs: Path) -> None:
    trials = trials_of(runs)
    drawn = differences(trials)
    assert drawn is not None
    assert "A against B" in drawn
    assert drawn.count("<circle") == 1
    assert trade_off(trials) is not None


def test_a_watched_run_and_the_same_unwatched_are_one(runs: Path) -> None:
    path = write_run(runs / "a0-watched", method="satimp", results=results(0.1, 0.1))
    (path / "history.jsonl").write_text('{"step": 1, "geffect/unlearn": -2.0}\n')
    every = [run for run in read([str(runs)])[0] if run.method == "satimp" and run.seed == 0]
    assert len(every) == 2
    assert sorted(run.number("geffect/largest") == 2 for run in every) == [False, True]
    assert sorted(run.seconds for run in every) == [30, 60]


def test_a_run_that_was_made_again_counts_before_the_one_in_an_archive(runs: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json.gz"
    write_archive(kept, read([str(runs)])[0])
    again = write_run(tmp_path / "again" / "b0-again", results=results(0.9, 0.1))
    every, left_out = read([str(kept), str(again)])
    (fresh,) = [run for run in every if run.method == "npo" and run.seed == 0]
    assert fresh.number(LEFT) == 0.9
    assert fresh.seconds == read([str(again)])[0][0].seconds
    assert [(each.name, "the same configuration and seed" in each.reason) for each in left_out] == [
        ("b0", True)
    ]


def test_claims_of_gradients_are_of_watched_runs_alone(tmp_path: Path) -> None:
    claims = definitions.load()
    for seed, largest in enumerate([100.0, 400.0]):
        for lr in (3e-6, 1e-5):  # GA was watched at one of its rates
            made = write_run(
                tmp_path / f"ga{seed}-{lr}", method="grad_ascent", seed=seed, lr=lr, results=results(0.5, 0.1)
            )
        for method, size in (("wga-geffect", 1.0), ("npo-geffect", 2.0), ("wtnpo", 40.0)):
            other = write_run(
                tmp_path / f"{method}{seed}", method=method, seed=seed, results={"train/steps": 50.0}
            )
            (other / "history.jsonl").write_text(json.dumps({"step": 1, "geffect/unlearn": -size}) + "\n")
        (made / "history.jsonl").write_text(json.dumps({"step": 1, "geffect/unlearn": -largest}) + "\n")
    by_name = {trial.claim.id: trial for trial in tried(claims, tasks(read([str(tmp_path)])[0]))}
    first, *_, last = by_name["geffect-a"].outcome.differences
    assert first.means == pytest.approx((2.30103, 0), abs=1e-5)  # log 100 and log 400, against log 1
    assert last.mean == pytest.approx(2.30103 - 1.60206, abs=1e-5)
    assert by_name["geffect-a"].chosen["GA, watched"] == "lr 1e-05"


def test_a_seed_that_is_under_way_does_not_decide_which_rate_is_chosen(runs: Path) -> None:
    write_run(runs / "a3-high", method="satimp", seed=3, lr=1e-4, results=results(0.02, 0.3))
    (trial,) = trials_of(runs)
    assert trial.chosen["A"] == "lr 1e-05"


def test_a_run_in_two_places_counts_once(runs: Path, tmp_path: Path) -> None:
    watched = write_run(runs / "a0-watched", method="satimp", results=results(0.1, 0.1))
    (watched / "history.jsonl").write_text('{"step": 1, "geffect/unlearn": -2.0}\n')
    kept = tmp_path / "kept.json.gz"
    every, _ = read([str(runs)])
    write_archive(kept, every)
    again, _ = read([str(kept), str(runs), str(runs / "a*")])
    assert {run.name: run.seconds for run in again} == {run.name: run.seconds for run in every}


def test_an_archive_keeps_the_results_of_a_run_that_is_evaluated_otherwise(
    runs: Path, tmp_path: Path
) -> None:
    kept = tmp_path / "kept.json.gz"
    write_archive(kept, read([str(runs)])[0])
    file = runs / "a0" / "results.json"
    before = json.loads(file.read_text())
    file.write_text(json.dumps({"sampling/forget/rougeL_recall": 0.5}))
    (found,) = [run for run in read([str(runs), str(kept)])[0] if run.name == "a0"]
    assert {**before, "sampling/forget/rougeL_recall": 0.5}.items() <= found.results.items()


def test_spreads_are_over_the_learning_rates_of_both(runs: Path) -> None:
    for seed in range(3):
        for rate, left in ((1e-4, 0.32 + 0.02 * seed), (1e-3, 0.9)):
            name = f"b{seed}-{rate}"
            write_run(runs / name, method="npo", seed=seed, lr=rate, results=results(left, 0.3))
    values = TWO_METHODS.model_dump()
    values["claims"][0]["comparisons"][0] |= {"at": "spread", "than_at": "spread"}
    (trial,) = tried(Claims.model_validate(values), tasks(read([str(runs)])[0]))
    (each,) = trial.outcome.differences
    # 0.10, 0.11 and 0.12 at one rate and 0.02 at the other; 0.02 between those of B that A has, too.
    assert each.means == pytest.approx((0.09, 0.02))
    assert trial.chosen == {"A": "all 2 settings", "B": "all 2 settings"}


def test_another_model_or_split_is_another_task(runs: Path) -> None:
    write_run(runs / "other", dataset={"forget": "forget05"}, results=results(0.5, 0.5))
    write_run(runs / "long", dataset={"max_length": 64}, results=results(0.5, 0.5))
    labels = [task.label for task in tasks(read([str(runs)])[0])]
    assert labels == [
        "authors forget05 × nano",
        "authors forget10 × nano (max_length 64)",
        "authors forget10 × nano (max_length none)",
    ]


def test_data_drawn_anew_are_a_seed_and_no_other_task(tmp_path: Path) -> None:
    for seed in range(2):
        for method, left in (("satimp", 0.1), ("npo", 0.3 + 0.1 * seed)):
            data = {"options": {"seed": seed, "authors": 40}}
            name = f"{method}{seed}"
            write_run(tmp_path / name, method=method, seed=seed, dataset=data, results=results(left, left))
    (trial,) = trials_of(tmp_path)
    assert [each.n for each in trial.outcome.differences] == [2]
    assert trial.outcome.differences[0].mean == pytest.approx(0.25)


def test_paths_are_not_kept(runs: Path) -> None:
    write_run(runs / "local", dataset={"path": "/home/somebody/tofu"}, results=results(0.5, 0.5))
    (run,) = (run for run in read([str(runs)])[0] if run.name == "local")
    assert run.settings["dataset.path"] == "tofu"


def test_the_page_of_the_documents_is_that_of_its_archive(tmp_path: Path) -> None:
    archive, made = ROOT / "docs/data/claims.json.gz", ROOT / "docs/claims.md"
    if not archive.is_file():
        pytest.skip("there is no docs/data/claims.json.gz, which docs/claims.md would be made from")
    assert main([str(archive), "--out", str(tmp_path / "claims.md")]) == 0
    assert (tmp_path / "claims.md").read_text(encoding="utf-8") == made.read_text(encoding="utf-8")
    for figure in (tmp_path / "images/claims").iterdir():
        assert figure.read_bytes() == (ROOT / "docs/images/claims" / figure.name).read_bytes()


# -- what is no evidence -------------------------------------------------------------------------------


def test_a_claim_has_no_part_on_a_task_with_runs_of_one_side_alone(runs: Path) -> None:
    for seed in range(3):
        other = {"forget": "forget05"}
        write_run(runs / f"c{seed}", method="satimp", seed=seed, dataset=other, results=results(0.1, 0.1))
    every = tasks(read([str(runs)])[0])
    assert [task.label for task in every] == ["authors forget05 × nano", "authors forget10 × nano"]
    (trial,) = tried(TWO_METHODS, every)
    assert trial.task == every[1]
    for run in (runs / f"{name}{seed}" for name in "ab" for seed in range(3)):
        (run / "results.json").write_text(json.dumps({CHOOSE: 0.1, **STEPS}))
    for run in runs.glob("a*-high"):
        shutil.rmtree(run)
    (trial,) = trials_of(runs)  # nor without the claim's metric
    assert trial.task is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"train/steps": 25.0}, "no fair comparison: train/steps 50 against 25"),
        ({LEFT: None}, "calibrated/tofu/forget/extraction_strength was not measured in the runs of B"),
        ({"seeds": 1}, "1 seed in common, at least two are needed"),
        ({"keys": {"retain_weight": 2.0}}, "the runs of B also differ in method.retain_weight"),
    ],
)
def test_runs_that_do_not_compare_tell_nothing(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    more, keys = {k: v for k, v in change.items() if "/" in k}, change.get("keys")
    for seed in range(3):
        write_run(tmp_path / f"a{seed}", method="satimp", seed=seed, results=results(0.1, 0.1))
        if seed < change.get("seeds", 3):
            own = {**results(0.3, 0.3), **more}
            write_run(tmp_path / f"b{seed}", seed=seed, results=own, keys=keys if seed == 2 else None)
    (trial,) = trials_of(tmp_path)
    assert trial.outcome.verdict == "cannot tell"
    assert words in trial.outcome.reason


def test_several_rates_without_selection_items_tell_nothing(runs: Path) -> None:
    every, _ = read([str(runs)])
    blind = [KeptRun(**{**vars(run), "results": {**run.results, CHOOSE: None}}) for run in every]
    (trial,) = tried(TWO_METHODS, tasks(blind))
    assert f"no {CHOOSE}, by which one of 2 settings is chosen (eval.select)" in trial.outcome.reason
    assert "no figure" not in page([trial], tasks(blind), blind, {}, [], "")


def test_repeated_runs_tell_how_much_they_differ(runs: Path) -> None:
    every, _ = read([str(runs)])
    assert repeated(tasks(every)) == []
    again = [
        replace(run, method="weighting", results={**run.results, LEFT: run.number(LEFT) + 0.1 * run.seed})
        for run in every
        if run.name in ("b0", "b1", "b2")
    ]
    *_, table = repeated(tasks([*every, *again]))
    assert "| authors forget10 × nano | `npo`, `weighting` | 3 | 0.1000 | 0.2000 |" in table


def test_the_page_says_how_the_runs_of_a_task_are_made(runs: Path) -> None:
    every = tasks(read([str(runs)])[0])
    levels = [
        Level(where={"dataset.name": "authors"}, made="`make claims`"),
        Level(where={"dataset.name": "tofu"}, made="otherwise"),
    ]
    assert made(levels, every) == ["- authors forget10 × nano: `make claims`."]


def test_bad_input_is_refused_by_name(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="no finished run in it; unlearn -m experiment=claims makes some"):
        read([str(tmp_path / "empty")])
    with pytest.raises(UserError, match="nowhere: no such directory, archive or pattern"):
        read([str(tmp_path / "nowhere")])
    broken = tmp_path / "broken.json.gz"
    broken.write_bytes(b"no gzip")
    with pytest.raises(UserError, match=r"broken\.json\.gz: no archive of runs"):
        read([str(broken)])
    broken.write_bytes(gzip.compress(json.dumps({"format": 9, "runs": []}).encode()))
    with pytest.raises(UserError, match="format 9, this program reads 1"):
        read([str(broken)])
    with pytest.raises(UserError, match="no run directory, and no archive"):
        read([str(runs / "a0" / "config.yaml")])


def test_a_damaged_archive_is_named(runs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "kept.json.gz"
    write_archive(kept, read([str(runs)])[0])
    whole = kept.read_bytes()
    stored = json.loads(gzip.decompress(whole))

    def refused(data: bytes, why: str) -> None:
        kept.write_bytes(data)
        with pytest.raises(UserError, match=rf"kept\.json\.gz: no archive of runs \(.*{why}"):
            read([str(kept)])

    def changed(**values: Any) -> bytes:
        rows = [{**stored["runs"][0], **values}, *stored["runs"][1:]]
        return gzip.compress(json.dumps({**stored, "runs": rows}).encode())

    refused(whole[: len(whole) // 2], "ended before")
    refused(whole[:30] + bytes(len(whole) - 60) + whole[-30:], "decompress")
    refused(changed(settings=[1]), "settings of a run are a list of 1, no object")
    refused(changed(results="0.5"), "results of a run are the text '0.5', no object")
    refused(changed(results={"run/seconds": "soon"}), "run/seconds of a run is the text 'soon', no number")
    refused(changed(name=["a"]), "name of a run is a list of 1, no text")
    deep = b'{"format": 1, "runs": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    refused(gzip.compress(deep), "recursion")
    monkeypatch.setattr("launch.report.packed._MOST_BYTES", 1 << 20)
    refused(gzip.compress(bytes(2 << 20)), "unpacks to more than 1 MiB")


def test_names_of_files_are_checked_before_anything_is_read(tmp_path: Path, capsys: Any) -> None:
    assert main([str(tmp_path), "--out", str(tmp_path / "claims.html")]) == 2
    assert "name a Markdown file" in capsys.readouterr().err
    assert main([str(tmp_path), "--out", str(tmp_path / "c.md"), "--keep", str(tmp_path / "c.json")]) == 2
    assert "ends in .json.gz" in capsys.readouterr().err
