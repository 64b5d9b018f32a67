"""The columns of a sweep's table, of each benchmark."""

from __future__ import annotations

import pytest

from launch.sweep import Made, summary
from unlearn.files import write_json

TOFU = (
    "tofu/forget_quality", "tofu/model_utility", "tofu/forget/probability", "tofu/forget/rougeL_recall",
    "tofu/forget/truth_ratio", "tofu/forget/extraction_strength", "tofu/retain/probability",
    "tofu/retain/extraction_strength",
)  # fmt: skip
OTHER = ("train/loss", "run/seconds", "judged/utility", "tofu/retain/rougeL_recall", "tofu/privleak",
         "relearning/60/tofu/forget/probability", "calibrated/muse/forget/verbmem")  # fmt: skip
LUME = ("lume/final", "lume/task_aggregate", "lume/mia_score", "lume/forget/regurgitation",
        "lume/forget/knowledge", "lume/retain/regurgitation", "lume/retain/knowledge")  # fmt: skip


@pytest.mark.parametrize(
    ("keys", "heads"),
    [
        (
            TOFU,
            ["forget_quality ↑", "model_utility ↑", "forget/probability ↓", "forget/rougeL_recall ↓",
             "forget/truth_ratio ↑", "forget/extraction_strength ↓", "retain/probability ↑",
             "retain/extraction_strength ↑"],
        ),
        (
            ("muse/forget/verbmem", "muse/forget/knowmem", "muse/retain/knowmem", "muse/privleak",
             "muse/mia/min_k_tpr_at_0.01", "muse/forget/verbmem/missing"),
            ["privleak →", "forget/verbmem ↓", "forget/knowmem ↓", "retain/knowmem ↑"],
        ),
        (
            ("wmdp/bio/accuracy", "wmdp/bio/accuracy_low", "mmlu/accuracy"),
            ["wmdp/bio/accuracy ↓", "mmlu/accuracy ↑"],
        ),
        (("mine/forget/probability", "mine/forget/odd"), ["forget/probability ↓"]),
        # Beside all of TOFU there is room for one.
        (
            (*TOFU[1:3], "general/accuracy"),
            ["tofu/model_utility ↑", "tofu/forget/probability ↓", "general/accuracy ↑"],
        ),
        ((), ["utility ↑"]),  # a judgement where there is nothing else
    ],
)  # fmt: skip
def test_columns(tmp_path, keys, heads):
    write_json(tmp_path / "results.json", dict.fromkeys((*keys, *OTHER), 0.5))
    found = summary([Made(("method=npo",), tmp_path), Made(("method=rmu",), None, "too few layers")])
    assert found.heads == ["", *heads]
    assert found.rows == [["npo", *["0.5000"] * len(heads)]]
    assert found.failed == [("rmu", "too few layers")]


def test_no_table_is_wider_than_nine_columns(tmp_path):
    write_json(tmp_path / "results.json", dict.fromkeys((*TOFU, *LUME, *OTHER), 0.5))
    heads = summary([Made((), tmp_path)]).heads
    assert [head.split(" ")[0] for head in heads[1:]] == [*TOFU, "lume/final"]
