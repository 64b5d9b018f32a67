"""Published logs of others (TOFU on phi-1.5, OpenUnlearning on a nano model) through our functions.

The references are computed here from the files, in plain probabilities, as the projects' scripts do.
"""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import hmean, ks_2samp, mannwhitneyu

from eval.benchmarks.tofu.published_logs import read_log
from eval.benchmarks.tofu.rescore import check_rouge, rescore
from eval.metrics.likelihood import TruthRatioForm, closeness_to_one, mean, option_probability
from eval.metrics.mia import auc
from tests.eval.eval_fixtures import needs_shared
from tests.paths import SHARED

PARTS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
OPTIONS = ("real_authors", "world_facts")
ROWS = {"forget": 300, "retain": 300, "real_authors": 100, "world_facts": 117}
PEER = SHARED / "peer" / "nano-tofu-full.TOFU_EVAL.json"
pytestmark = needs_shared


def path(name):
    return SHARED / "data" / "tofu-published-logs" / f"phi_{name}_wd0.json"


def raw(name):
    return json.loads(path(name).read_text(encoding="utf-8"))


def column(part, name):
    return np.array([part[name][str(i)] for i in range(len(part[name]))])


def plain_ratio(part, form):
    """R in plain probabilities: `geometric` as aggregate_eval_stat.py, `arithmetic` as utils.py."""
    losses = column(part, "average_perturb_loss")
    wrong = np.exp(-losses.mean(1)) if form == "geometric" else np.exp(-losses).mean(1)
    return wrong / np.exp(-column(part, "avg_paraphrased_loss"))


def plain_utility(logs, form):
    nine = []
    for name in ("retain", *OPTIONS):
        part = logs[PARTS[name]]
        right, wrong = np.exp(-column(part, "avg_gt_loss")), np.exp(-column(part, "average_perturb_loss"))
        nine.append((right / (right + wrong.sum(1)) if name in OPTIONS else right).mean())
        nine.append(column(part, "rougeL_recall").mean())
        nine.append(np.clip(1 - plain_ratio(part, form), 0, None).mean())
    return hmean(nine)


@pytest.mark.parametrize("name", ["full", "retain90"])
def test_parts_are_read_in_row_order(name):
    log = read_log(path(name))
    assert log.origin == "tofu"
    assert {key: len(rows) for key, rows in log.sets.items()} == ROWS
    assert (log.auc, log.mia, log.stored, log.nll("holdout")) == ({}, {}, {}, None)
    for key, part in PARTS.items():
        logged, rows = raw(name)[part], log.sets[key]
        assert rows.perturbed_nll is not None
        assert rows.answers is not None
        np.testing.assert_array_equal(log.nll(key), column(logged, "avg_gt_loss"))
        np.testing.assert_array_equal(list(rows.perturbed_nll), column(logged, "average_perturb_loss"))
        assert rows.answers[-1] == logged["generated_text"][str(len(rows) - 1)][2]


@pytest.mark.parametrize("name", ["full", "retain90"])
@pytest.mark.parametrize("key", PARTS)
def test_truth_ratios_are_those_that_the_log_holds(name, key):
    found = np.exp(read_log(path(name)).log_truth_ratio(name=key))
    np.testing.assert_allclose(found, column(raw(name)[PARTS[key]], "truth_ratio"), rtol=1e-5)


@pytest.mark.parametrize("key", OPTIONS)
def test_option_probabilities_are_those_that_the_log_holds(key):
    rows = read_log(path("full")).sets[key]
    assert rows.nll is not None
    assert rows.perturbed_nll is not None
    found = -np.log(option_probability(rows.nll, rows.perturbed_nll))
    np.testing.assert_allclose(found, column(raw("full")[PARTS[key]], "normalized_gt_loss"), rtol=1e-4)


# The published wd 0.01 models have .5034/.5221 (full) and .5130/.5320 (retain90); these wd 0 ones are others
# of the same kind.
@pytest.mark.parametrize(
    ("name", "arithmetic", "geometric"), [("full", 0.5034, 0.5221), ("retain90", 0.5130, 0.5320)]
)
def test_model_utility(name, arithmetic, geometric):
    forms: dict[TruthRatioForm, float] = {"arithmetic": arithmetic, "geometric": geometric}
    for form, near in forms.items():
        found = rescore(read_log(path(name)), form=form)["tofu/model_utility"]
        assert found == pytest.approx(plain_utility(raw(name), form), rel=1e-9)
        assert found == pytest.approx(near, abs=0.01)


@pytest.mark.parametrize("form", ["geometric", "arithmetic"])
def test_forget_quality_of_full_against_retain90(form):
    found = rescore(read_log(path("full")), read_log(path("retain90")), form)
    ratios = [plain_ratio(raw(name)[PARTS["forget"]], form) for name in ("full", "retain90")]
    # The original scripts test 1/R and only the geometric form; ranks, so R gives the same.
    for plain in (ks_2samp(*ratios), ks_2samp(*(1 / ratio for ratio in ratios))):
        assert found["tofu/forget_quality"] == pytest.approx(plain.pvalue, rel=1e-9)
        assert found["tofu/forget_quality_ks"] == pytest.approx(plain.statistic, rel=1e-12)
    assert (found["tofu/forget_quality_n"], found["tofu/forget_quality_retain_n"]) == (300, 300)
    # wd 0.01: 2.2e−16 (geometric) and 2.4e−17 (arithmetic), with the same n.
    assert found["tofu/forget_quality_log10"] == pytest.approx(-16, abs=2)


def test_forget_set_summaries_are_near_the_published_ones_of_weight_decay_0_01():
    # Probability, ROUGE, arithmetic and geometric truth ratio.
    for name, published in (
        ("full", (0.9282, 0.9249, 0.5006, 0.4834)),
        ("retain90", (0.1349, 0.4279, 0.6418, 0.6288)),
    ):
        log = read_log(path(name))
        metrics = rescore(log)
        assert metrics["tofu/forget/truth_ratio"] == mean(closeness_to_one(log.log_truth_ratio()))
        found = (
            metrics["tofu/forget/probability"],
            metrics["tofu/forget/rougeL_recall"],
            rescore(log, form="arithmetic")["tofu/forget/truth_ratio"],
            metrics["tofu/forget/truth_ratio"],
        )
        assert found == pytest.approx(published, abs=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "retain90", "peer"])
def test_rouge_of_the_stored_generations_is_the_stored_one(name):
    rows = dict.fromkeys(("forget", "retain"), 400) | {"real_authors": 100, "world_facts": 117}
    rows = rows if name == "peer" else ROWS
    assert check_rouge(read_log(PEER if name == "peer" else path(name))) == {
        f"{key}/{metric}": (n, n) for key, n in rows.items() for metric in ("rouge1_recall", "rougeL_recall")
    }


def test_a_part_by_itself_is_known_by_its_name(tmp_path):
    part = tmp_path / PARTS["forget"]
    part.write_text(json.dumps(raw("full")[PARTS["forget"]]), encoding="utf-8")
    found = rescore(read_log(part), read_log(path("retain90")))
    whole = rescore(read_log(path("full")), read_log(path("retain90")))
    assert found == {key: value for key, value in whole.items() if "forget" in key}


def test_openunlearning_gets_its_own_numbers():
    log = read_log(PEER)
    found = rescore(log)
    assert log.origin == "openunlearning"
    rescored = set(log.stored) & set(found)
    # Not in the log: what the retain model gives.
    assert set(log.stored) - rescored == {"tofu/forget_quality", "tofu/privleak"}
    # 4 sets × (probability, ROUGE-L, truth ratio), 2 × the paraphrased answer's probability, extraction
    # strength and exact memorization, model utility, 6 attacks.
    assert len(rescored) == 4 * 3 + 2 + 2 + 1 + 6
    for key in rescored:
        assert found[key] == pytest.approx(log.stored[key], rel=1e-8), key
    assert found["tofu/model_utility"] == pytest.approx(log.stored["tofu/model_utility"], rel=1e-9)


def test_openunlearnings_truth_ratios_are_ours_plus_its_epsilon():
    log, content = read_log(PEER), json.loads(PEER.read_text(encoding="utf-8"))
    for key, part in {"forget": "forget_truth_ratio", "real_authors": "ra_Truth_Ratio"}.items():
        rows = content[part]["value_by_index"]
        stored = np.array([rows[str(i)]["score"] for i in range(len(rows))])
        theirs = np.exp(log.log_truth_ratio(name=key, epsilon=1e-10))
        np.testing.assert_allclose(theirs, stored, rtol=1e-12)
        # No paraphrased answer of this model is less likely than 9e−5, so 1e−10 more is 1.1e−6 of it.
        np.testing.assert_allclose(np.exp(log.log_truth_ratio(name=key)), stored, rtol=2e-6)
    ours = rescore(log, epsilon=0)["tofu/model_utility"]
    assert ours == pytest.approx(log.stored["tofu/model_utility"], rel=1e-7)


def test_openunlearnings_auc_comes_of_its_scores_per_example():
    log = read_log(PEER)
    assert (
        set(log.auc) == {"gradnorm", "loss", "min_k", "min_k_plus_plus", "reference", "zlib"} == set(log.mia)
    )
    for attack, scores in log.mia.items():
        assert len(scores.forget) == len(scores.holdout) == 400
        above = mannwhitneyu(scores.holdout, scores.forget).statistic / 400**2
        assert auc(scores.forget, scores.holdout) == pytest.approx(above) == pytest.approx(log.auc[attack])
    assert log.auc["reference"] == pytest.approx(1 - 1 / 400**2)  # one pair of 160,000 in the wrong order
    np.testing.assert_array_equal(log.nll("forget"), log.mia["loss"].forget)
    np.testing.assert_array_equal(log.nll("holdout"), log.mia["loss"].holdout)


def test_a_log_against_itself_has_forget_quality_1():
    found = rescore(read_log(PEER), read_log(PEER))
    assert (found["tofu/forget_quality"], found["tofu/forget_quality_ks"]) == (1, 0)
    # Its Min-K AUC is 1, and 0/0 has no value.
    assert np.isnan(found["tofu/privleak"])
