"""Evaluation logs of TOFU (arXiv 2401.06121) that other projects publish.

There are two formats, distinguished by their keys: the original `eval_log_aggregated.json` (or one of its
parts, known by the file name), and OpenUnlearning's `TOFU_EVAL.json`. Both have the losses of each row, so
metrics can be computed from them. This needs no model, torch or transformers.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

import numpy as np

from eval.benchmarks.tofu.log_columns import Column, PublishedLogError, get, number
from eval.collection.ragged import Ragged
from eval.metrics.likelihood import TruthRatioForm, log_truth_ratio
from unlearn.errors import UserError
from unlearn.paths import user_path
from unlearn.reading import read_json

Origin: TypeAlias = Literal["tofu", "openunlearning"]
# Here the answer is a name among options: it is its own paraphrase, and its probability is relative.
WITH_OPTIONS = ("real_authors", "world_facts")
TAUGHT = ("forget", "retain")
_MEMORIZATION = ("extraction_strength", "exact_memorization")
_PARTS = {
    "forget": "eval_log_forget.json",
    "retain": "eval_log.json",
    "real_authors": "eval_real_author_wo_options.json",
    "world_facts": "eval_real_world_wo_options.json",
}
_PREFIX = {"forget": "forget", "retain": "retain", "real_authors": "ra", "world_facts": "wf"}
_MIA = "mia_"


@dataclass(frozen=True, eq=False)
class PublishedSet:
    """Rows of one set in order, [E]; None where the log lacks a part, NaN where a row is null.

    NLLs are means over an answer's tokens with the end token, in nats. For real authors and world facts the
    answer is its own paraphrase.
    """

    nll: np.ndarray | None = None
    paraphrased_nll: np.ndarray | None = None
    perturbed_nll: Ragged | None = None
    rouge1_recall: np.ndarray | None = None
    rougeL_recall: np.ndarray | None = None
    extraction_strength: np.ndarray | None = None
    exact_memorization: np.ndarray | None = None
    answers: tuple[str, ...] | None = None
    generations: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return next((len(part) for part in vars(self).values() if part is not None), 0)


@dataclass(frozen=True, eq=False)
class AttackScores:
    """Membership scores, one per row; a higher score means less likely trained on."""

    forget: np.ndarray
    holdout: np.ndarray


@dataclass(frozen=True, eq=False)
class PublishedLog:
    """The content of a log: `sets`, and by attack (`loss`, `min_k` …) `mia` and `auc`.

    auc: near 1, the forget set is known far better than the holdout; 0.5, equally well.
    stored: metrics that OpenUnlearning computed, by our keys (`tofu/model_utility` …). The original logs have
    neither these nor attacks.
    """

    path: Path
    origin: Origin
    sets: dict[str, PublishedSet]
    mia: dict[str, AttackScores]
    auc: dict[str, float]
    stored: dict[str, float]

    def nll(self, name: str) -> np.ndarray | None:
        """Return the NLL of each row's answer, [E]; of `holdout` if the log has the attack by loss."""
        if name == "holdout":
            return self.mia["loss"].holdout if "loss" in self.mia else None
        return self.sets[name].nll if name in self.sets else None

    def log_truth_ratio(
        self, form: TruthRatioForm = "geometric", name: str = "forget", *, epsilon: float = 0.0
    ) -> np.ndarray:
        """Return log R of each row, [E]; `epsilon` is added to the paraphrased answer's probability.

        Raises:
            PublishedLogError: the log lacks what R needs.
        """
        rows = self.sets.get(name, PublishedSet())
        if rows.paraphrased_nll is None or rows.perturbed_nll is None:
            needs = _PARTS[name] if self.origin == "tofu" else " and ".join(_ratio_metrics(name))
            raise PublishedLogError(f"{self.path}: the truth ratio of the {name} set needs {needs}")
        return log_truth_ratio(add(rows.paraphrased_nll, epsilon), rows.perturbed_nll, form)


def add(nll: np.ndarray, epsilon: float) -> np.ndarray:
    """Return −log(exp(−nll) + epsilon)."""
    return -np.logaddexp(-nll, math.log(epsilon)) if epsilon else nll


def read_log(path: Path | str) -> PublishedLog:
    """Read a log of either format.

    Raises:
        PublishedLogError: it has neither format, or rows are missing or not finite.
    """
    path = user_path(path)
    content = _json(path)
    keys = list(content) if isinstance(content, dict) else []
    if "avg_gt_loss" in keys:
        if path.name not in _PARTS.values():
            raise PublishedLogError(
                f"{path}: one part of an original TOFU log, but its name does not tell of which set; "
                f"call it one of {', '.join(_PARTS.values())}"
            )
        content, keys = {path.name: content}, [path.name]
    if set(keys) & set(_PARTS.values()):
        return _read_tofu(path, content)
    summary = bool(keys) and all(isinstance(value, int | float) for value in content.values())
    if any("_Q_A_" in key or key.startswith(_MIA) for key in keys) and not summary:
        return _read_openunlearning(path, content)
    what = f"the keys {', '.join(keys[:4])}" if keys else f"a JSON {type(content).__name__}"
    hint = "; a summary has no rows, give the TOFU_EVAL.json in the same folder" if summary else ""
    raise PublishedLogError(
        f"{path}: neither an original TOFU log (keys such as {_PARTS['forget']}) nor OpenUnlearning's "
        f"TOFU_EVAL.json (keys such as forget_Q_A_Prob with rows): found {what}{hint}"
    )


def _json(path: Path) -> Any:
    try:
        return read_json(path, constants=True)
    except UserError as error:
        raise PublishedLogError(str(error)) from None


def _read_tofu(path: Path, content: Mapping[str, Any]) -> PublishedLog:
    parts = {name: part for name, part in _PARTS.items() if part in content}
    sets = {name: _tofu_set(content[part], f"{path}: {part}") for name, part in parts.items()}
    return PublishedLog(path, "tofu", sets, mia={}, auc={}, stored={})


def _tofu_set(part: Any, where: str) -> PublishedSet:
    def column(name: str) -> Column:
        return Column.of(get(part, name, where), f"{where}: {name}")

    columns = {
        "nll": column("avg_gt_loss"),
        "paraphrased_nll": column("avg_paraphrased_loss"),
        "perturbed_nll": column("average_perturb_loss"),
        "rougeL_recall": column("rougeL_recall"),
    }
    if "rouge1_recall" in part:
        columns["rouge1_recall"] = column("rouge1_recall")
    if "generated_text" in part:  # each row: the prompt, what the model wrote, the true answer
        texts = column("generated_text")
        columns |= {"generations": texts.field(1), "answers": texts.field(2)}
    return _set(columns, where)


def _read_openunlearning(path: Path, content: Mapping[str, Any]) -> PublishedLog:
    columns_of = {name: _openunlearning_columns(content, name, str(path)) for name in _PREFIX}
    sets = {
        name: _set(columns, f"{path}: {_PREFIX[name]}_*") for name, columns in columns_of.items() if columns
    }
    mia, auc, stored = {}, {}, {}
    for key in [key for key in content if key.startswith(_MIA)]:
        attack, where = key.removeprefix(_MIA), f"{path}: {key}"
        value = get(content[key], "agg_value", where)
        if value is not None:
            auc[attack] = stored[f"tofu/mia/{attack}"] = number(value, where)
        if "forget" in content[key]:
            scores = [_rows(content[key], part, where) for part in ("forget", "holdout")]
            mia[attack] = AttackScores(*(column.field("score").numbers() for column in scores))
    for key, ours in _stored_keys().items():
        part = content.get(key)
        value = part.get("agg_value") if isinstance(part, dict) else None
        if value is not None:  # null where a metric needs a retain log and there was none
            stored[ours] = number(value, f"{path}: {key}: agg_value")
    return PublishedLog(path, "openunlearning", sets, mia, auc, stored)


def _openunlearning_columns(content: Mapping[str, Any], name: str, where: str) -> dict[str, Column]:
    paraphrased, perturbed = _ratio_metrics(name)
    rouge = f"{_PREFIX[name]}_Q_A_ROUGE"
    sources = {
        "nll": (f"{_PREFIX[name]}_Q_A_Prob", "avg_loss"),
        "paraphrased_nll": (paraphrased, "avg_loss"),
        "perturbed_nll": (perturbed, "avg_loss"),
        "rouge1_recall": (rouge, "rouge1_recall"),
        "rougeL_recall": (rouge, "rougeL_recall"),
        "answers": (rouge, "ground_truth"),
        "generations": (rouge, "generation"),
    }
    parts = {part: source for part, source in sources.items() if source[0] in content}
    if name == "forget":  # rows of these are optional, of the others required
        parts |= {
            part: (part, "score") for part in _MEMORIZATION if "value_by_index" in content.get(part, {})
        }
    return {part: _rows(content, metric, where).field(field) for part, (metric, field) in parts.items()}


def _rows(content: Mapping[str, Any], metric: str, where: str) -> Column:
    where = f"{where}: {metric}"
    return Column.of(get(get(content, metric, where), "value_by_index", where), where)


def _ratio_metrics(name: str) -> tuple[str, str]:
    prefix = _PREFIX[name]
    return f"{prefix}_Q_A_{'Prob' if name in WITH_OPTIONS else 'PARA_Prob'}", f"{prefix}_Q_A_PERT_Prob"


def _stored_keys() -> dict[str, str]:
    """Return OpenUnlearning's metrics that exist here too, by our keys."""
    keys = {name: f"tofu/{name}" for name in ("model_utility", "forget_quality", "privleak")}
    keys |= {name: f"tofu/forget/{name}" for name in _MEMORIZATION}
    keys |= {f"{name}_Q_A_PARA_Prob": f"tofu/{name}/paraphrased_probability" for name in TAUGHT}
    for name, prefix in _PREFIX.items():
        ratio = "forget_truth_ratio" if name == "forget" else f"{prefix}_Truth_Ratio"
        keys[f"{prefix}_Q_A_Prob" + "_normalised" * (name in WITH_OPTIONS)] = f"tofu/{name}/probability"
        keys |= {f"{prefix}_Q_A_ROUGE": f"tofu/{name}/rougeL_recall", ratio: f"tofu/{name}/truth_ratio"}
    return keys


def _set(columns: Mapping[str, Column], where: str) -> PublishedSet:
    read: dict[str, Any] = {
        "perturbed_nll": Column.lists,
        "answers": Column.texts,
        "generations": Column.texts,
    }
    counts = {name: len(column.values) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        lengths = ", ".join(f"{count} of {name}" for name, count in counts.items())
        raise PublishedLogError(f"{where}: expected as many rows in each part, found {lengths}")
    return PublishedSet(**{name: read.get(name, Column.numbers)(column) for name, column in columns.items()})
