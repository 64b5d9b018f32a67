"""What a report and a model card say of the step that was chosen (`eval.select`), from selection.json."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from launch.report.results_table import format_value

_RULES = {
    "last": "the last one, whatever was measured",
    "fixed": "set in advance",
    "first_below_retain": "the first that reaches the retain model's {metric} of {bound}",
    "best_above_floor": "the most forgotten by {metric} with {utility} at {bound} or better",
    "within": "the first with {utility} at {bound} or better, which is within {tolerance} of the {start}'s",
}


def selection_sentences(stored: Mapping[str, Any]) -> list[str]:
    """Return which step was chosen, by which rule, and on which examples; [] where nothing was chosen."""
    if "chosen" not in stored:
        return []
    values = {**stored, "bound": format_value(stored.get("bound"))}
    rule = f"rule {stored['rule']}: {_RULES[stored['rule']].format_map(values)}"
    chosen, last = stored["chosen"], list(stored["steps"])[-1]
    if stored["met"]:
        step = f"The model is that of step {chosen} of {last} ({rule})."
    else:
        step = f"No step meets the rule, so the model is that of the last step, {last} ({rule})."
    return [step, _seen(stored)]


def _seen(stored: Mapping[str, Any]) -> str:
    """Say on which examples the rule decided, or else what was measured during training."""
    count, decides = sum(stored["examples"].values()), stored["rule"] not in ("last", "fixed")
    if stored["on"] == "selection":
        seen = f"{count} selection examples ({stored['share']:.0%} of each set), which the results leave out"
        rule = f"The rule saw {seen}; metrics" if decides else "Metrics"
        return f"{rule} during training are of {'these examples' if decides else seen}."
    if not decides:
        return "Metrics during training are of the reported examples, which decided nothing."
    return (
        f"The rule saw the {count} examples that are reported, so the results are better than those on new "
        "examples."
    )


def selection_table(stored: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return the sentences, the rule's metrics, and each step's values with whether it was chosen."""
    sentences = selection_sentences(stored)
    if not sentences:
        return None
    steps: Mapping[str, Mapping[str, float | None]] = stored["steps"]
    keys = list(dict.fromkeys(key for row in steps.values() for key in row))
    return {
        "sentences": sentences,
        "keys": keys,
        "rows": [
            (step, [row.get(key) for key in keys], step == str(stored["chosen"]))
            for step, row in steps.items()
        ],
    }
