"""Read runs from exports of W&B: the CSV of its table of runs, JSON from its public API."""

from __future__ import annotations

import ast
import csv
import io
import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from eval.metric_catalog import info
from launch.report.compare.runs import ComparedRun, kind_of, measured
from launch.report.run_groups import Unusable
from launch.report.settings import flat, plain, settings_of
from unlearn.errors import UserError, quoted
from unlearn.reading import describe, lines_of
from unlearn.run_dir import numbers

ENDINGS = (".csv", ".json", ".jsonl")
_METHODS = ("method.name", "method", "trainer.handler", "trainer", "unlearn_method", "algorithm")
# Columns of a W&B table that are neither configuration nor metrics.
_ABOUT = {
    *("Name", "ID", "State", "Notes", "User", "Tags", "Created", "Runtime", "Sweep", "Group", "Job Type"),
    *("Hostname", "Host", "Description", "Commit", "Updated", "End Time", "Start Time", "GPU Type"),
    *("GPU Count", "CPU Count", "Command", "Model", "OS", "Python Version", "Project", "Entity", "Agent"),
}
_OWN_TO_A_RUN = re.compile(
    r"_.*|(.*\.)?(run_name|output_dir|logging_dir|save_dir|root|fingerprint|host|started|report_to)"
    r"|(tracker|checkpoint|hardware|job|versions|host)\..*"
)
_ENDED_BADLY = {"crashed", "failed", "killed", "running", "preempted", "preempting"}
_UNREADABLE = (OSError, ValueError, csv.Error, SyntaxError, TypeError, RecursionError, MemoryError)
"""Errors of the readers of JSON, CSV and Python's literals."""
_LONGEST_CELL = 2**31 - 1  # characters; the csv module refuses more than 131072, which a large config has
Line = tuple[str, str, dict[str, Any], dict[str, Any]]
"""Name, state, flat configuration, flat summary."""


def read_export(file: Path) -> Iterator[ComparedRun | tuple[str, str]]:
    """Yield the runs of an export, or name and reason of a run that cannot be compared.

    Raises:
        UserError: the file is not an export, or cannot be read.
    """
    try:
        text = file.read_text(encoding="utf-8-sig")
        lines = list(_csv(text) if file.suffix == ".csv" else _json(text))
    except _UNREADABLE as error:
        raise UserError(f"{file} is no export of W&B runs: {error}. {_WANTED}") from error
    for name, state, config, summary in lines:
        try:
            yield run_of(name, state, config, summary)
        except Unusable as reason:
            yield name, str(reason)
        except OverflowError as error:
            yield name, f"a number of it is too large ({error})"


_WANTED = (
    "Wanted is the CSV that W&B's table of runs downloads (with the column Name), or lines of JSON with "
    "name, config and summary"
)


def run_of(
    name: str, state: str, config: Mapping[str, Any], summary: Mapping[str, Any], **rest: Any
) -> ComparedRun:
    """Make a run from its flat configuration and summary.

    Raises:
        Unusable: the run did not finish, or has no metric.
    """
    if state in _ENDED_BADLY:
        raise Unusable(f"not complete, its state in W&B is {state!r}")
    kind = kind_of(config.get("role", "run")) if "method.name" in config else "run"
    results = numbers(summary)
    if not measured(results):
        raise Unusable("no metric in it: in W&B's table, show the columns of the metrics before downloading")
    settings = settings_of(config)
    if "method.name" not in config:
        keys = [k for k, v in config.items() if v is not None and not _OWN_TO_A_RUN.fullmatch(k)]
        settings = {key: plain(config[key]) for key in keys}
    seed_key = _seed_key(config)
    method_key = next((k for k in _METHODS if isinstance(config.get(k), str)), None)
    not_settings = {seed_key, method_key}
    return ComparedRun(
        name=name,
        method=str(config[method_key]) if method_key else name,
        settings={key: value for key, value in settings.items() if key not in not_settings},
        seed=plain(config.get(seed_key)) if seed_key else None,
        results=results,
        kind=kind,
        **rest,
    )


def _seed_key(config: Mapping[str, Any]) -> str | None:
    if "seed" in config:
        return "seed"
    return next((key for key in sorted(config) if key.split(".")[-1] == "seed"), None)


# -- CSV ---------------------------------------------------------------------------------------------------


def _csv(text: str) -> Iterator[Line]:
    csv.field_size_limit(_LONGEST_CELL)
    rows = csv.DictReader(io.StringIO(text, newline=""))
    heads = [head for head in rows.fieldnames or [] if head]
    name = next((head for head in heads if head.lower() in ("name", "run", "display_name")), None)
    if name is None:
        raise ValueError(f"it has no column Name, but {', '.join(heads[:8]) or 'none at all'}")
    for row in rows:
        state = str(row.get("State") or row.get("state") or "").lower()
        if {"config", "summary"} <= set(heads):  # the CSV that W&B's documentation of the API writes
            yield str(row[name]), state, flat(_literal(row["config"])), flat_metrics(_literal(row["summary"]))
            continue
        cells = {k: _value(v) for k, v in row.items() if k and k not in _ABOUT and v not in ("", None)}
        cells = {k.removeprefix("config.").removeprefix("summary."): v for k, v in cells.items() if k != name}
        config = {k: v for k, v in cells.items() if not _is_metric(k, v)}
        yield str(row[name]), state, config, {k: v for k, v in cells.items() if k not in config}


def _is_metric(column: str, value: Any) -> bool:
    """Whether a column is of the summary, which W&B does not say: numbers with a slash or a declared name."""
    number = value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    return number and ("/" in column or bool(info(column).direction) or column.startswith("_"))


def _value(cell: str) -> Any:
    """A cell as the value that was exported: number, truth value, list, null or text."""
    words = {"true": True, "false": False, "null": None, "none": None, "nan": math.nan, "": None}
    if cell.lower() in words:
        return words[cell.lower()]
    try:
        return float(cell) if not re.fullmatch(r"[-+]?\d+", cell) else int(cell)
    except ValueError:
        pass
    if cell[:1] in "[{":
        try:
            return json.loads(cell)
        except ValueError:
            return cell
    return cell


def _literal(cell: str | None) -> dict[str, Any]:
    """A dict written as JSON or by Python's `repr`."""
    cell = cell or "{}"
    try:
        values = json.loads(cell)
    except ValueError:
        values = ast.literal_eval(re.sub(r"\bnan\b(?=[,}\]])", "None", cell))
    return values if isinstance(values, dict) else {}


# -- JSON --------------------------------------------------------------------------------------------------


def _json(text: str) -> Iterator[Line]:
    """One object per line, or a list of objects."""
    if text.lstrip().startswith("["):
        objects = json.loads(text)
    else:
        objects = [json.loads(line) for _, line in lines_of(text)]
    for each in objects:
        if not isinstance(each, dict) or not {"config", "summary"} <= set(each):
            raise ValueError("an entry has no config and summary")
        name = each.get("name") or each.get("display_name") or each.get("id") or "run"
        for part in ("config", "summary"):
            if not isinstance(each[part], dict):
                raise ValueError(f"the {part} of {quoted(str(name))} is {describe(each[part])}, no object")
        config = {key: unwrapped(value) for key, value in each["config"].items()}
        yield str(name), str(each.get("state", "")).lower(), flat(config), flat_metrics(each["summary"])


def unwrapped(value: Any) -> Any:
    """Return 1 for `{"value": 1, "desc": null}`, as W&B's files write it."""
    wrapped = isinstance(value, Mapping) and "value" in value and set(value) <= {"value", "desc"}
    return value["value"] if wrapped else value


def flat_metrics(summary: Mapping[str, Any], above: str = "") -> dict[str, Any]:
    """Return the values by key, nested keys joined by a slash, without media and W&B's own keys."""
    metrics: dict[str, Any] = {}
    for key, value in ((str(key), value) for key, value in summary.items()):
        if isinstance(value, Mapping):
            if "_type" not in value:
                metrics |= flat_metrics(value, f"{above}{key}/")
        elif not key.startswith("_"):
            metrics[f"{above}{key}"] = math.nan if value in ("NaN", "Infinity", "-Infinity") else value
    return metrics
