"""Labels of rows and tasks: no longer than needed to distinguish them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from launch.report.run_groups import RunSettings, mark
from launch.report.settings import word

_LONGEST = 32  # characters of a setting
_ALL_UP_TO = 4  # settings; of more, a label has as few as distinguish the same runs
_FIRST = ("model.name", "model.path", "dataset.name", "dataset.forget", "method.lr", "method.epochs")


def distinguishing(keys: Sequence[str], runs: Sequence[RunSettings]) -> list[str]:
    """Return the settings that a label needs to distinguish these runs."""
    if len(keys) <= _ALL_UP_TO:
        return list(keys)
    counts = {key: len({mark(run, [key]) for run in runs}) for key in keys}
    chosen: list[str] = []
    parts = 1
    for key in sorted(keys, key=lambda k: (_FIRST.index(k) if k in _FIRST else len(_FIRST), -counts[k], k)):
        more = len({mark(run, [*chosen, key]) for run in runs})
        if more > parts:
            chosen, parts = [*chosen, key], more
    return chosen


def label(run: RunSettings, keys: Sequence[str], names: Mapping[str, str]) -> str:
    """Write these settings of a run, by their short names."""
    return ", ".join(f"{names.get(key, key)}={short(run.value(key))}" for key in keys)


def short(value: Any) -> str:
    """Write a setting in a label: the last part of a long path, the beginning of another long text."""
    text = " ".join(word(value).split())
    if len(text) <= _LONGEST:
        return text
    end = text.rstrip("/").split("/")[-1]
    return f"…/{end}" if "/" in text and len(end) <= _LONGEST else f"{text[:_LONGEST]}…"


def numbered(texts: Sequence[str]) -> list[str]:
    """Add a number to repeated texts, which shortened settings can make equal."""
    distinct: list[str] = []
    for place, text in enumerate(texts):
        before = texts[:place].count(text)
        distinct.append(f"{text} ({before + 1})" if before else text)
    return distinct
