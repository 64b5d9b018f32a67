"""Which metrics the terminal shows, in which order, and which way they are good."""

from __future__ import annotations

import io
import re
from itertools import chain

import pytest
from rich.console import Console

from eval.judgement.judge import with_judgement
from eval.metric_catalog import MAX_ROWS, in_order, info, set_order, shown
from launch.report.results_table import result_table

MIA = ("loss", "zlib", "min_k", "min_k_plus_plus", "gradnorm", "reference")


def of_tofu(prefix: str = "") -> list[str]:
    """All that a TOFU evaluation gives, as far as one set knows it."""
    metrics = ["probability", "rougeL_recall", "rouge1_recall", "truth_ratio", "extraction_strength"]
    metrics += ["exact_memorization", "truth_probability", "paraphrased_probability"]
    sets = ("forget",) if prefix else ("forget", "retain", "real_authors", "world_facts")
    keys = [f"{prefix}tofu/{name}/{metric}" for name in sets for metric in metrics]
    keys += [f"{prefix}tofu/{name}/probability/missing" for name in sets]
    if not prefix:
        keys += ["tofu/forget_quality", "tofu/forget_quality_log10", "tofu/model_utility", "tofu/privleak"]
        keys += [f"tofu/mia/{name}{end}" for name in MIA for end in ("", "_low", "_high", "_tpr_at_0.01")]
    return keys


def everything() -> list[str]:
    """A run with TOFU and all robustness evaluations."""
    variants = ("quantisation/int8", "quantisation/int4", "relearning/20", "relearning/60", "relearning/120")
    keys = of_tofu() + list(chain.from_iterable(of_tofu(f"{name}/") for name in variants))
    keys += [f"judged/{name}" for name in ("robustness", "privacy", "utility", "forget_efficacy")]
    keys += [f"sampling/forget/leakage_at_{k}{end}" for k in (1, 4, 16) for end in ("", "_low", "_high")]
    keys += [f"prompts/{kind}/rougeL_recall" for kind in ("original", "prefixed", "opened", "worst")]
    return [
        *keys,
        "wmdp/bio/accuracy",
        "wmdp/cyber/accuracy",
        "mmlu/accuracy",
        "general/accuracy",
        "general/piqa/accuracy",
        "general/wikitext/bits_per_byte",
        "train/loss",
    ]


def test_all_evaluations_of_a_run_fit_the_terminal():
    keys = everything()
    assert len(keys) > 120
    rows = shown(keys)
    assert len(rows) == MAX_ROWS
    assert rows == in_order(rows)
    assert rows[:4] == [f"judged/{n}" for n in ("forget_efficacy", "utility", "privacy", "robustness")]
    assert {"tofu/forget_quality", "tofu/model_utility", "tofu/privleak", "general/accuracy"} <= set(rows)
    assert [row for row in rows if row.startswith(("sampling", "prompts"))] == [
        "prompts/original/rougeL_recall",
        "prompts/worst/rougeL_recall",
        "sampling/forget/leakage_at_16",
    ]
    assert rows[-5:] == [
        f"{name}/tofu/forget/extraction_strength"
        for name in (
            *("quantisation/int4", "quantisation/int8"),
            *("relearning/20", "relearning/60", "relearning/120"),
        )
    ]
    assert not any(row.endswith(("_low", "_high", "missing")) or "tpr" in row for row in rows)


def test_of_relearning_what_was_not_trained_on_is_shown():
    keys = [f"relearning/{n}/{end}tofu/forget/probability" for n in (5, 10) for end in ("", "unseen/")]
    keys += [key.replace("probability", "extraction_strength") for key in keys]
    keys += ["calibrated/tofu/forget/extraction_strength", "calibrated/alpha", "relearning/steps"]
    assert shown(keys) == [
        "calibrated/tofu/forget/extraction_strength",
        "relearning/5/unseen/tofu/forget/extraction_strength",
        "relearning/10/unseen/tofu/forget/extraction_strength",
    ]


def test_models_are_judged_against_each_other_and_not_as_their_files_say():
    columns: dict[str, dict[str, float | None]] = {
        "target": {"tofu/model_utility": 0.6, "judged/utility": 0.1},
        "retain model": {"tofu/model_utility": 0.3, "judged/utility": 1.0, "judged/robustness": None},
        "unlearned": {"tofu/model_utility": 0.45},
    }
    # 0.6/0.6, 0.3/0.6 and 0.45/0.6
    found = with_judgement(columns)
    assert [column["judged/utility"] for column in found.values()] == pytest.approx([1.0, 0.5, 0.75])
    assert list(found["retain model"]) == ["judged/forget_efficacy", "judged/utility", "tofu/model_utility"]
    alone = {"this model": columns["unlearned"]}
    assert with_judgement(alone)["this model"]["judged/utility"] == pytest.approx(0.45)
    assert with_judgement(alone, own_target=True)["this model"]["judged/utility"] == 1.0


def test_tofu_alone_shows_every_set():
    rows = shown(of_tofu())
    assert len(rows) <= MAX_ROWS
    assert rows[:3] == ["tofu/forget_quality", "tofu/model_utility", "tofu/privleak"]
    for name in ("forget", "retain", "real_authors", "world_facts"):
        assert f"tofu/{name}/truth_ratio" in rows
    assert "tofu/mia/min_k" in rows
    assert "tofu/mia/zlib" not in rows


@pytest.mark.parametrize(
    ("keys", "rows"),
    [
        (
            ["wmdp/cyber/accuracy", "mmlu/accuracy", "wmdp/bio/accuracy"],
            ["wmdp/bio/accuracy", "wmdp/cyber/accuracy", "mmlu/accuracy"],
        ),
        (
            ["muse/retain/knowmem", "muse/mia/min_k_auc", "muse/forget/knowmem", "muse/forget/verbmem"],
            ["muse/forget/verbmem", "muse/forget/knowmem", "muse/retain/knowmem", "muse/mia/min_k_auc"],
        ),
        (
            ["lume/forget/task1_knowledge", "lume/forget/knowledge", "lume/task_aggregate", "lume/final"],
            ["lume/final", "lume/task_aggregate", "lume/forget/knowledge"],
        ),
        (
            ["copyright/forget/perplexity", "copyright/forget/bleu", "copyright/forget_quality_gap"],
            ["copyright/forget_quality_gap", "copyright/forget/bleu"],
        ),
        # What no benchmark declares is shown without an arrow.
        (
            ["mine/forget/probability", "mine/forget/odd", "mine/accuracy", "mine/forget/odd/missing"],
            ["mine/accuracy", "mine/forget/odd", "mine/forget/probability"],
        ),
        (["train/loss", "train/seconds", "run"], []),
        (["relearning/20/mine/forget/odd", "quantisation/int4/tofu/model_utility"], []),
    ],
)
def test_what_other_benchmarks_show(keys, rows):
    assert shown(keys) == rows


@pytest.mark.parametrize(
    ("key", "arrow"),
    [
        ("judged/privacy", "↑"),
        ("quantisation/int4/tofu/forget/probability", "↓"),
        ("quantisation/int4/tofu/retain/probability", "↑"),
        ("relearning/60/tofu/forget/truth_ratio", "↑"),
        ("tofu/forget/truth_probability", "↓"),
        ("tofu/forget/paraphrased_probability", "↓"),
        ("tofu/forget/fluency", "↑"),
        ("tofu/forget/distinct_4", "↑"),
        ("tofu/forget_quality_ks", "↓"),
        ("tofu/mia/min_k", "→"),
        ("tofu/mia/min_k_low", ""),
        ("tofu/mia/min_k_tpr_at_0.01", ""),
        ("tofu/forget/probability/missing", ""),
        ("muse/forget/verbmem", "↓"),
        ("muse/retain/knowmem", "↑"),
        ("muse/privleak", "→"),
        ("lume/forget/task3_regurgitation", "↓"),
        ("lume/retain/knowledge", "↑"),
        ("lume/mia/loss_auc", "→"),
        ("lume/mia_score", "↑"),
        ("lume/final", "↑"),
        ("copyright/forget/bleu", "↓"),
        ("copyright/retain/bleu", "↑"),
        ("copyright/forget/perplexity", "↑"),
        ("copyright/retain/perplexity", "↓"),
        ("copyright/forget_quality_gap", "→"),
        ("wmdp/chem/accuracy", "↓"),
        ("general/accuracy", "↑"),
        ("general/arc_easy/accuracy_norm", "↑"),
        ("general/wikitext/word_perplexity", "↓"),
        ("sampling/forget/leakage_at_16", "↓"),
        ("sampling/forget/rougeL_recall_max_at_4", "↓"),
        ("prompts/worst/extraction_strength", "↓"),
        ("tofu/holdout/probability", ""),
        ("train/loss", ""),
    ],
)
def test_directions(key, arrow):
    assert info(key).direction[:1] == arrow


@pytest.mark.parametrize(
    ("key", "parts"),
    [
        ("tofu/forget/probability", ("tofu", "forget", "probability")),
        ("tofu/forget/probability/missing", ("tofu", "forget", "probability/missing")),
        ("relearning/60/tofu/forget/probability", ("tofu", "forget", "probability")),
        ("quantisation/int4/mmlu/accuracy", ("mmlu", "", "accuracy")),
        ("tofu/model_utility", ("tofu", "", "model_utility")),
        ("loss", ("", "", "loss")),
    ],
)
def test_keys_are_split_without_what_was_done_to_the_model(key, parts):
    one = info(key)
    assert (one.benchmark, one.group, one.metric) == parts


def test_numbers_in_keys_are_read_as_numbers():
    keys = [f"relearning/{n}/tofu/forget/probability" for n in (200, 20, 100)]
    keys += [f"sampling/forget/leakage_at_{k}" for k in (16, 4, 1)]
    assert in_order(keys) == [
        *(f"sampling/forget/leakage_at_{k}" for k in (1, 4, 16)),
        *(f"relearning/{n}/tofu/forget/probability" for n in (20, 100, 200)),
    ]


def test_rows_of_one_kind_stand_together():
    keys = shown(everything())
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(result_table({"unlearned": dict.fromkeys(keys, 0.5)}, keys))
    blocks = re.split(r"\n\s*\n", console.export_text())
    lines = [[line.split()[0] for line in block.splitlines() if line.strip()] for block in blocks]
    assert ["prompts/original/rougeL_recall", "prompts/worst/rougeL_recall"] in lines
    assert all(len(line) <= 100 for block in blocks for line in block.splitlines())


def test_sets_are_ordered_by_their_roles_whatever_their_names():
    order = [
        ("muse", "knowmem_forget"), ("muse", "verbmem"), ("muse", "knowmem_retain"), ("tofu", "forget"),
        ("tofu", "retain"), ("tofu", "real_authors"), ("prompts", "forget"),
    ]  # fmt: skip
    assert sorted(set(order), key=lambda place: set_order(*place)) == order
