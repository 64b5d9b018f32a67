"""`unlearn rescore LOG`: compute our metrics of a published TOFU log, without a model."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
from scipy.special import expit

from eval.benchmarks.tofu.published_logs import (
    TAUGHT,
    WITH_OPTIONS,
    Origin,
    PublishedLog,
    PublishedSet,
    add,
    read_log,
)
from eval.collection.ragged import Ragged
from eval.metrics.likelihood import (
    TruthRatioForm,
    aggregate,
    closeness_to_one,
    forget_quality,
    harmonic_mean,
    option_probability,
    probability,
    truth_preference,
)
from eval.metrics.mia import auc, privleak
from unlearn.arguments import Parser, path_argument
from unlearn.files import finite
from unlearn.guard import tool

if TYPE_CHECKING:
    from eval.metrics.text import Rouge

EPSILON: dict[Origin, float] = {"tofu": 0.0, "openunlearning": 1e-10}
"""The number that each project adds to a probability before it divides by it."""
_EXAMPLES = (
    "TOFU_EVAL.json",
    "TOFU_EVAL.json --retain RETAIN_EVAL.json --json",
    "eval_log_aggregated.json --check",
)
_DESCRIPTION = """\
Our metrics of a published TOFU evaluation log: the original eval_log_aggregated.json, or OpenUnlearning's
TOFU_EVAL.json. No model is needed."""
_EPILOG = """\
OpenUnlearning adds 1e-10 to every probability that it divides by, which decides the truth ratios of models
that give the answers less than that; its logs are rescored likewise, so that its numbers come out. Our runs
add nothing: compare with them at --epsilon 0."""
_STORED = ("rougeL_recall", "rouge1_recall", "extraction_strength", "exact_memorization")
_UTILITY_SETS = ("retain", "real_authors", "world_facts")
_UTILITY = ("probability", "rougeL_recall", "truth_ratio")


def rescore(
    log: PublishedLog,
    retain: PublishedLog | None = None,
    form: TruthRatioForm = "geometric",
    epsilon: float | None = None,
) -> dict[str, float]:
    """Return metrics by our keys, as far as the logs allow; `<key>/missing` counts rows without a value.

    Extraction strength and exact memorization are means of the stored rows, since they need the model's hits
    per token.

    retain: the retain model's log, for forget quality and PrivLeak (the latter where both hold Min-K).
    epsilon: added to every probability that is divided by, in both logs; by default as the project that wrote
    `log` does, which reproduces its numbers. Our runs add nothing: compare with them at 0.

    Raises:
        PublishedLogError: there is a retain log, and one of the two cannot give truth ratios.
    """
    epsilon = EPSILON[log.origin] if epsilon is None else epsilon
    metrics: dict[str, float] = {}
    for name, rows in log.sets.items():
        for metric, values in _by_row(name, rows, epsilon):
            metrics |= aggregate(f"tofu/{name}/{metric}", values)
        if rows.paraphrased_nll is not None and rows.perturbed_nll is not None:
            ratio = log.log_truth_ratio(form, name, epsilon=epsilon)
            summary = closeness_to_one if name == "forget" else truth_preference
            metrics |= aggregate(f"tofu/{name}/truth_ratio", summary(ratio))
            if name in TAUGHT:
                nll = rows.paraphrased_nll
                own = np.exp(add(nll, epsilon) - nll)  # the ratio has p + ε for p
                metrics |= aggregate(f"tofu/{name}/truth_probability", own * expit(-ratio))
    nine = [metrics.get(f"tofu/{name}/{metric}") for name in _UTILITY_SETS for metric in _UTILITY]
    if None not in nine:
        metrics["tofu/model_utility"] = harmonic_mean(np.array(nine, dtype=np.float64))
    metrics |= {f"tofu/mia/{name}": auc(scores.forget, scores.holdout) for name, scores in log.mia.items()}
    if retain is not None:
        metrics |= _against(log, retain, form, epsilon)
    return metrics


def rouge_of(log: PublishedLog) -> dict[str, Rouge]:
    """Return ROUGE of the generations in the log, by set; both projects scored these texts unchanged.

    In the original logs they begin with `Answer: ` and continue to 200 tokens, which lowers no recall.
    """
    # Imported here: nltk takes as long to import as everything else.
    from eval.metrics.text import rouge
    from eval.metrics.words import Words

    return {
        name: rouge(rows.answers, rows.generations, Words("rouge-score"))
        for name, rows in log.sets.items()
        if rows.answers is not None and rows.generations is not None
    }


def check_rouge(log: PublishedLog) -> dict[str, tuple[int, int]]:
    """Return by `set/metric` how many recalls of the generations equal the stored ones, and of how many."""
    equal: dict[str, tuple[int, int]] = {}
    for name, computed in rouge_of(log).items():
        for metric in ("rouge1_recall", "rougeL_recall"):
            stored = getattr(log.sets[name], metric)
            if stored is not None:
                measured = ~np.isnan(stored)
                same = np.isclose(getattr(computed, metric)[measured], stored[measured], rtol=1e-9, atol=0)
                equal[f"{name}/{metric}"] = (int(same.sum()), len(same))
    return equal


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 2 refused)."""
    options = parser().parse_args(arguments)
    log = read_log(options.log)
    retain = read_log(options.retain) if options.retain else None
    epsilon = EPSILON[log.origin] if options.epsilon is None else options.epsilon
    metrics = rescore(log, retain, options.truth_ratio, epsilon)
    summary: dict[str, Any] = {"log": str(log.path), "retain": str(retain.path) if retain else None}
    summary |= {"origin": log.origin, "truth_ratio": options.truth_ratio, "epsilon": epsilon}
    checked = check_rouge(log) if options.check else {}
    if options.json:
        rouge = {key: {"equal": equal, "rows": rows} for key, (equal, rows) in checked.items()}
        summary |= {"metrics": metrics, "stored": log.stored} | ({"rouge": rouge} if options.check else {})
        sys.stdout.write(json.dumps(finite(summary), indent=2, ensure_ascii=False) + "\n")
        return 0
    _show(metrics, log.stored)
    sys.stdout.write(
        "\n" + "".join(f"{key}: {value}\n" for key, value in summary.items() if value is not None)
    )
    if options.check and not checked:
        sys.stdout.write("rouge: the log holds no generations\n")
    for key, (equal, rows) in checked.items():
        sys.stdout.write(f"{key}: {equal} of {rows} from the generations equal the stored\n")
    return 0


def _by_row(name: str, rows: PublishedSet, epsilon: float) -> list[tuple[str, np.ndarray]]:
    """Yield metrics without a truth ratio, each with its values [E]."""
    columns = [(key, getattr(rows, key)) for key in _STORED]
    if rows.paraphrased_nll is not None and name in TAUGHT:
        columns.append(("paraphrased_probability", probability(rows.paraphrased_nll)))
    if rows.nll is not None and name not in WITH_OPTIONS:
        columns.insert(0, ("probability", probability(rows.nll)))
    elif rows.nll is not None and rows.perturbed_nll is not None:
        # Equivalent to one more wrong answer of probability epsilon.
        wrong = [np.append(row, -np.log(epsilon)) if epsilon else row for row in rows.perturbed_nll]
        columns.insert(0, ("probability", option_probability(rows.nll, Ragged.of(wrong))))
    return [(key, values) for key, values in columns if values is not None]


def _against(
    log: PublishedLog, retain: PublishedLog, form: TruthRatioForm, epsilon: float
) -> dict[str, float]:
    ours, theirs = (one.log_truth_ratio(form, epsilon=epsilon) for one in (log, retain))
    metrics = forget_quality(ours, theirs).under("tofu/forget_quality")
    if "min_k" in log.auc and "min_k" in retain.auc:
        metrics["tofu/privleak"] = privleak(log.auc["min_k"], retain.auc["min_k"])
    return metrics


def _show(metrics: Mapping[str, float], stored: Mapping[str, float]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("metric", no_wrap=True)
    table.add_column("rescored", justify="right", no_wrap=True)
    if stored:
        table.add_column("stored", justify="right", no_wrap=True)
    for key in sorted({**metrics, **stored}, key=lambda key: (key.count("/"), key)):
        values = (metrics, stored) if stored else (metrics,)
        table.add_row(key, *(_format(one.get(key)) for one in values))
    Console().print(table)


def _format(value: float | None) -> str:
    if value is None or np.isnan(value):
        return "–"
    return f"{value:.6g}"


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("rescore", _EXAMPLES, _DESCRIPTION, _EPILOG)
    made.add_argument("log", type=path_argument, metavar="LOG", help="the log of the model to score")
    made.add_argument(
        "--retain",
        type=path_argument,
        metavar="LOG",
        help="the retain model's log, for forget quality and PrivLeak",
    )
    made.add_argument(
        "--truth-ratio",
        choices=get_args(TruthRatioForm),
        default="geometric",
        help="mean over the perturbed answers: of losses (the default: aggregate_eval_stat.py, "
        "OpenUnlearning) or of probabilities (model utility in the original utils.py, which takes forget "
        "quality geometric all the same)",
    )
    made.add_argument(
        "--epsilon",
        type=_epsilon,
        metavar="E",
        help="added to probabilities that are divided by (default: 1e-10 for OpenUnlearning's logs, else 0)",
    )
    made.add_argument(
        "--check", action="store_true", help="score the stored generations too: is the ROUGE the stored one?"
    )
    made.add_argument("--json", action="store_true", help="JSON in place of the table; null where unmeasured")
    return made


def _epsilon(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text!r}: give a number of at least 0 and below 1")
    return value
