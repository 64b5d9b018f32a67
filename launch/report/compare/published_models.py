"""Read the published results of UDS's unlearned models (arXiv 2605.24614), `method_results.json`.

Its columns become ours where they measure the same: 1 − a column `one_minus_…`, TOFU's parts of model
utility, model utility, fluency (its `truth` is the truth's share among true and false answers, as its range
shows). What only that paper has is `uds/<column>`, and `uds/recomputed_<aggregate>` is what its aggregates
give from its own columns. `judged/…` is our judgement of the same models, with `full` and `retain` as target
and retain model; without AUCs in the file there is no privacy of ours.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from eval.judgement.judge import judge
from eval.judgement.uds_aggregate import AGGREGATES, ATTACKS, uds_aggregates
from launch.report.compare.runs import ComparedRun, RunRole
from launch.report.run_files import Results
from unlearn.errors import UserError

_FORGET = {
    "one_minus_es": "extraction_strength",
    "one_minus_em": "exact_memorization",
    "one_minus_paraprob": "paraphrased_probability",
    "one_minus_truth": "truth_probability",
}
_SETS = {"retain": "retain", "ra": "real_authors", "wf": "world_facts"}
_PARTS = {"q_prob": "probability", "q_rouge": "rougeL_recall", "truth_ratio": "truth_ratio"}
_SAME = {"model_utility": "tofu/model_utility", "fluency": "tofu/forget/fluency"} | {
    f"{short}_{part}": f"tofu/{name}/{metric}"
    for short, name in _SETS.items()
    for part, metric in _PARTS.items()
}
_OWN = (*ATTACKS, *(name for name in AGGREGATES if name != "model_utility"), "uds", "logit_lens")
_KINDS: Mapping[str, RunRole] = {"full": "target", "retain": "retain model"}


def is_published(file: Path) -> bool:
    """Return whether a file has the form of these results."""
    return file.suffix == ".json" and _content(file) is not None


def read_published(file: Path) -> Iterator[ComparedRun]:
    """Yield the models of the file as runs; their names tell their hyper-parameters.

    Raises:
        UserError: a model lacks a column, or one is no number.
    """
    content = _content(file)
    assert content is not None
    try:
        results = {
            str(each["model"]): _results(each, float(content["full_utility"][each["epoch"]]))
            for each in content["models"]
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: a model has no number for {error}; take the published file as it is"
        ) from error
    full, retain = (results.get(name) for name in _KINDS)
    for each in content["models"]:
        name = str(each["model"])
        kind = _KINDS.get(name, "run")
        judged = judge(results[name], full, retain).metrics
        settings = {
            "model.name": "Llama-3.2-1B-Instruct", "dataset.name": "tofu", "dataset.forget": "forget10",
            **({"method.published": name} if kind == "run" else {}),
        }  # fmt: skip
        yield ComparedRun(name, str(each["method"]), settings, None, {**results[name], **judged}, kind)


def _results(model: Mapping[str, Any], full_utility: float) -> Results:
    results: Results = {f"tofu/forget/{ours}": 1 - float(model[name]) for name, ours in _FORGET.items()}
    results |= {ours: float(model[name]) for name, ours in _SAME.items()}
    results |= {f"uds/{name}": float(model[name]) for name in _OWN}
    numbers = {name: float(value) for name, value in model.items() if isinstance(value, int | float)}
    made = uds_aggregates(numbers, full_utility)
    return results | {f"uds/recomputed_{name}": value for name, value in made.items()}


@cache
def _content(file: Path) -> dict[str, Any] | None:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    known = (
        isinstance(content, dict) and isinstance(content.get("models"), list) and "full_utility" in content
    )
    return content if known else None
