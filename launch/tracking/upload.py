"""Send tables and charts of a finished run to its tracker."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa

from eval.metric_catalog import shown
from launch.job import Baselines, Job
from launch.report.charts import trade_offs
from launch.report.geffect.files import tracked
from launch.report.run_files import example_rows
from launch.report.traces import Figure
from launch.tracking import run_names
from launch.tracking.trackers import Tracker
from unlearn.run_dir import RunDir

log = logging.getLogger(__name__)

_SAMPLES = 20  # rows of each set that go to the tracker; examples.parquet has all
_LONGEST = 4000  # characters of a cell
_TEXTS = ("set", "id", "group", "question", "answer", "generation", "prediction")
_COLOURS = {"unlearned": "#2563eb", "target": "#d97706", "retain model": "#059669", "path": "#93b4f5"}


def send_results(tracker: Tracker, job: Job, role: str, rundir: RunDir, summary: Mapping[str, float]) -> None:
    """Send the results of a finished run, its tables and figures and, with tracker.model, its model.

    Errors are logged: the run's own files are complete.
    """
    try:
        tracker.summary(summary)
        tracker.table("results", ["metric", "value"], [[key, value] for key, value in summary.items()])
        send_tables(tracker, rundir)
        send_figures(tracker, job.baselines, rundir, summary)
        if job.config.tracker.model and role == run_names.WANTED and job.config.method.makes_model:
            _show_model(tracker, job, rundir, summary)
    except Exception as error:
        log.warning("the tracker did not get all of this run's files (%s: %s)", type(error).__name__, error)


def _show_model(tracker: Tracker, job: Job, rundir: RunDir, summary: Mapping[str, float]) -> None:
    if not rundir.model.is_dir():
        log.warning("tracker.model=true, but save_model=false kept no model: there is none to upload")
        return
    facts = {"fingerprint": job.fingerprint, "method": job.config.method.name, "seed": job.config.seed}
    tracker.model(rundir.path.name, rundir.model, facts | {key: summary[key] for key in shown(summary)})


def send_tables(tracker: Tracker, rundir: RunDir) -> None:
    """Send examples of each benchmark, and the G-effect's tables of its last measured step."""
    for benchmark, examples in example_rows(rundir.path, _columns):
        if not examples:
            continue
        sets: dict[str, list[list[Any]]] = {}
        for row in examples:
            sets.setdefault(row["set"], []).append([_cell(value) for value in row.values()])
        columns = list(examples[0])
        sample = [row for group in sets.values() for row in group[:_SAMPLES]]
        kind = "generations" if "generation" in columns else "examples"
        tracker.table(f"{benchmark}/{kind}", columns, sample)
    for name, columns, rows in tracked(rundir.path):
        tracker.table(name, columns, rows)


def send_figures(
    tracker: Tracker, baselines: Baselines, rundir: RunDir, summary: Mapping[str, float]
) -> None:
    """Send charts of forgetting against utility with target, retain model and path."""
    models: dict[str, Mapping[str, float | None]] = {}
    for name, folder in (("target", baselines.target), ("retain model", baselines.retain)):
        if folder is not None and (results := RunDir(folder).read_results()):
            models[name] = results
    if not models:
        return
    figures = trade_offs({**models, "unlearned": summary}, rundir.history_by_step())
    for number, figure in enumerate(figures):
        tracker.figure(f"figures/trade-off-{number}" if number else "figures/trade-off", _plain(figure))


def _plain(figure: Figure) -> dict[str, Any]:
    """Return the figure as plotly takes it: a colour for each trace's role."""
    data = []
    for trace in figure.data:
        colour = {"color": _COLOURS.get(trace["role"], "#64748b")}
        drawn = {key: value for key, value in trace.items() if key != "role"}
        data.append(drawn | {part: trace.get(part, {}) | colour for part in ("marker", "line")})
    title = {"text": figure.title, "subtitle": {"text": figure.hint}}
    return {"data": data, "layout": {**figure.layout, "title": title}}


def _columns(schema: pa.Schema) -> list[str]:
    """The columns that a table shows: question, answers and every number; none without examples."""
    texts = [name for name in _TEXTS if name in schema.names]
    if "set" not in texts:
        return []
    return texts + [field.name for field in schema if pa.types.is_floating(field.type)]


def _cell(value: Any) -> Any:
    return f"{value[:_LONGEST]}…" if isinstance(value, str) and len(value) > _LONGEST else value
