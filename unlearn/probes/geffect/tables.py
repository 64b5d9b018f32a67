"""Results of the G-effect probe at one step: numbers for the history, and tables."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from torch import Tensor

from unlearn.data.tokenization import TokenSequence
from unlearn.files import replacing
from unlearn.probes.geffect.linearity_check import Change, agreement
from unlearn.probes.geffect.parameter_groups import GROUPS, KINDS, ParameterGroup

WAYS = {"forget": "unlearn", "retain": "retain"}
"""Names of effects in keys and columns, by the set whose risk they are on."""


@dataclass(frozen=True)
class Tensors:
    """Inner products, by parameter, of a gradient and the gradients of the risks on `sets`: [1 + S, 1 + S].

    The gradient is that of a term, without its `factor`, or of the whole objective.
    """

    name: str
    factor: float
    sets: tuple[str, ...]
    grams: Mapping[str, Tensor]


@dataclass(frozen=True)
class Example:
    """One example: `effects` by direction and group of layers; `tokens` are columns [N] of its answer."""

    set: str
    id: str
    question: str | None
    answer: str
    risk: float
    effects: Mapping[str, Mapping[str, float]]
    sequence: TokenSequence
    weights: np.ndarray | None
    tokens: Mapping[str, np.ndarray]


class Pair(NamedTuple):
    """The effect of forgetting one example on another: ⟨∇ risk of the other, ∇L of the one alone⟩."""

    forget_id: str
    retain_id: str
    effect: float
    per_length: float
    """The effect divided by the length of ∇L, which compares steps of equal length."""


@dataclass(frozen=True)
class Measured:
    """All results of one step."""

    step: int
    parameter_groups: Mapping[str, ParameterGroup]
    risks: Mapping[str, float]
    tensors: Sequence[Tensors]
    distance: float
    examples: Sequence[Example]
    change: Mapping[str, Change]
    pairs: Sequence[Pair]


# -- numbers -------------------------------------------------------------------------------------------


def numbers(measured: Measured, trust: float) -> dict[str, float]:
    """Return the row of the history."""
    row: dict[str, float] = {f"geffect/risk_{name}": risk for name, risk in measured.risks.items()}
    for each in measured.tensors:
        if each.name == "objective":
            row |= _objective(each, measured.parameter_groups)
        else:
            total = _sum(each.grams.values())
            row |= {
                f"geffect/terms/{each.name}/{WAYS[name]}": each.factor * float(total[0, 1 + i])
                for i, name in enumerate(each.sets)
            }
    row["geffect/distance"] = measured.distance
    return row | _check(measured.change, trust)


def _objective(each: Tensors, groups: Mapping[str, ParameterGroup]) -> dict[str, float]:
    total = _sum(each.grams.values())
    row = {"geffect/gradient_norm": math.sqrt(max(0.0, float(total[0, 0])))}
    by_group = {g: _of(each, groups, lambda p, g=g: p.group == g) for g in GROUPS}  # type: ignore[misc]
    by_kind = {k: _of(each, groups, lambda p, k=k: p.kind == k) for k in KINDS}  # type: ignore[misc]
    for i, name in enumerate(each.sets, start=1):
        way = f"geffect/{WAYS[name]}"
        row |= {way: float(total[0, i]), f"{way}_cosine": cosine(total, 0, i)}
        row |= {f"{way}/{group}": float(gram[0, i]) for group, gram in by_group.items() if gram is not None}
        row |= {f"{way}_by_kind/{k}": float(gram[0, i]) for k, gram in by_kind.items() if gram is not None}
    if len(each.sets) == 2:
        row["geffect/conflict"] = cosine(total, 1, 2)
        row |= {
            f"geffect/conflict/{group}": cosine(gram, 1, 2)
            for group, gram in by_group.items()
            if gram is not None
        }
    return row


def _check(change: Mapping[str, Change], trust: float) -> dict[str, float]:
    if not change:
        return {}
    row = {"geffect/check/step": next(iter(change.values())).eta}
    for name, each in change.items():
        row[f"geffect/check/{name}_predicted"] = float(each.predicted.mean())
        row[f"geffect/check/{name}_true"] = float(each.true.mean())
        if each.second is not None:
            row[f"geffect/check/{name}_second_order"] = float(each.second.mean())
    first = agreement(change)
    row |= {f"geffect/check/{name}": value for name, value in first.items()}
    if all(each.second is not None for each in change.values()):
        row |= {f"geffect/check/second_order_{n}": v for n, v in agreement(change, second=True).items()}
    # NaN, where nothing changed, counts as not trusted.
    return row | {"geffect/trusted": float(first["explained"] >= trust)}


def cosine(gram: Tensor, i: int, j: int) -> float:
    """Return the cosine of two gradients from their Gram matrix; NaN where one of them is zero."""
    lengths = float(gram[i, i]) * float(gram[j, j])
    return float(gram[i, j]) / math.sqrt(lengths) if lengths > 0 else math.nan


def _of(
    each: Tensors, groups: Mapping[str, ParameterGroup], wanted: Callable[[ParameterGroup], bool]
) -> Tensor | None:
    some = [gram for name, gram in each.grams.items() if wanted(groups[name])]
    return _sum(some) if some else None


def _sum(grams: Any) -> Tensor:
    total: Tensor = sum(grams)
    return total


# -- tables --------------------------------------------------------------------------------------------


def write(folder: Path, measured: Measured, tokenizer: Any) -> None:
    """Write the tables of a step, each atomically."""
    tables = {
        "layers": list(_layer_rows(measured)),
        "examples": list(_example_rows(measured)),
        "tokens": list(_token_rows(measured, tokenizer)),
        "grid": [
            {
                "forget_id": p.forget_id,
                "retain_id": p.retain_id,
                "effect": p.effect,
                "per_length": p.per_length,
            }
            for p in measured.pairs
        ],
    }
    folder.mkdir(parents=True, exist_ok=True)
    for name, rows in tables.items():
        if rows:
            with replacing(folder / f"{name}.parquet") as path:
                pq.write_table(pa.Table.from_pylist(rows), path, compression="zstd")


def _layer_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    for each in measured.tensors:
        for name, gram in each.grams.items():
            place = measured.parameter_groups[name]
            row: dict[str, Any] = {
                "parameter": name, "group": place.group, "kind": place.kind, "layer": place.layer,
                "term": each.name, "unlearn": None, "retain": None, "unlearn_cosine": None,
                "retain_cosine": None, "conflict": None, "forget_norm": None, "retain_norm": None,
            }  # fmt: skip
            for i, name_of_set in enumerate(each.sets, start=1):
                way = WAYS[name_of_set]
                row |= {way: each.factor * float(gram[0, i]), f"{way}_cosine": _or_none(cosine(gram, 0, i))}
                row[f"{name_of_set}_norm"] = math.sqrt(max(0.0, float(gram[i, i])))
            if each.name == "objective" and len(each.sets) == 2:
                row["conflict"] = _or_none(cosine(gram, 1, 2))
            yield row


def _example_rows(measured: Measured) -> Iterator[dict[str, Any]]:
    counted: dict[str, int] = {}
    for example in measured.examples:
        number = counted[example.set] = counted.get(example.set, -1) + 1
        change = measured.change.get(example.set)
        row: dict[str, Any] = {
            "set": example.set, "id": example.id, "question": example.question, "answer": example.answer,
            "risk": example.risk,
        }  # fmt: skip
        for way, groups in example.effects.items():
            row |= {way: sum(groups.values()), **{f"{way}/{group}": e for group, e in groups.items()}}
        row["predicted"] = None if change is None else float(change.predicted[number])
        row["true"] = None if change is None else float(change.true[number])
        if change is not None and change.second is not None:
            row["second_order"] = float(change.second[number])
        yield row


def _token_rows(measured: Measured, tokenizer: Any) -> Iterator[dict[str, Any]]:
    for example in measured.examples:
        ids = example.sequence.ids[example.sequence.answer_start :]
        for position, token in enumerate(ids if example.tokens else ()):
            yield {
                "set": example.set, "id": example.id, "position": position,
                "text": tokenizer.decode([int(token)]),
                "weight": None if example.weights is None else float(example.weights[position]),
                **{name: float(values[position]) for name, values in example.tokens.items()},
            }  # fmt: skip


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
