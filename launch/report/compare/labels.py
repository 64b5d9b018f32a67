"""Labels of rows and tasks: no longer than it takes to tell them apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.report.compare.runs import ComparedRun
from launch.report.settings import word

_LONGEST = 32  # characters of a setting
_MOST = 4  # settings, of which all are told; of more, as few as tell the same apart
_FIRST = ("model.name", "model.path", "dataset.name", "dataset.forget", "method.lr", "method.epochs")

Mark = tuple[str, ...]


def mark(run: ComparedRun, keys: Sequence[str]) -> Mark:
    """Equal for runs whose settings are."""
    return tuple(repr(run.value(key)) for key in keys)


def telling(keys: Sequence[str], runs: Sequence[ComparedRun]) -> list[str]:
    """Those of the settings that a label has."""
    if len(keys) <= _MOST:
        return list(keys)
    counts = {key: len({mark(run, [key]) for run in runs}) for key in keys}
    found: list[str] = []
    parts = 1
    for key in sorted(keys, key=lambda k: (_FIRST.index(k) if k in _FIRST else len(_FIRST), -counts[k], k)):
        more = len({mark(run, [*found, key]) for run in runs})
        if more > parts:
            found, parts = [*found, key], more
    return found


def label(run: ComparedRun, keys: Sequence[str], names: Mapping[str, str]) -> str:
    return ", ".join(f"{names.get(key, key)}={short(run.value(key))}" for key in keys)


def short(value: Any) -> str:
    """A setting in a label: of a long path the end, of another long text the beginning."""
    text = " ".join(word(value).split())
    if len(text) <= _LONGEST:
        return text
    end = text.rstrip("/").split("/")[-1]
    return f"…/{end}" if "/" in text and len(end) <= _LONGEST else f"{text[:_LONGEST]}…"


def numbered(texts: Sequence[str]) -> list[str]:
    """The same texts, equal ones with a number: cut settings made them so."""
    found: list[str] = []
    for place, text in enumerate(texts):
        before = texts[:place].count(text)
        found.append(f"{text} ({before + 1})" if before else text)
    return found
