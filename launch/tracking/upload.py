"""What the tracker gets of a run: its identity when it begins, and at its end what lies in its files."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from eval.metric_catalog import shown
from launch.job import Baselines, Job
from launch.redact import cleaned
from launch.report.charts import trade_offs
from launch.report.geffect.files import tracked
from launch.report.run_files import history
from launch.report.traces import Figure
from launch.tracking import run_names as labels
from launch.tracking.tracker import NullTracker, Tracker, open_tracker
from unlearn.files import read_json
from unlearn.run_dir import RunDir

log = logging.getLogger(__name__)

_SAMPLES = 20  # generations of each set that go to the tracker; all are in examples.parquet
_LONGEST = 4000  # characters of a cell
_TEXTS = ("set", "id", "group", "question", "answer", "generation", "prediction")
_COLOURS = {"unlearned": "#2563eb", "target": "#d97706", "retain model": "#059669", "path": "#93b4f5"}


def tracker_of(job: Job, role: str, rundir: RunDir) -> Tracker:
    """The run's tracker, opened; it knows what earlier processes of the run have logged."""
    config = job.config
    settings = config.tracker
    science = config.model_dump(mode="json", exclude={"root", "dry_run", "tracker"})
    return open_tracker(
        mode=settings.mode,
        project=settings.project,
        entity=settings.entity,
        group=settings.group or os.environ.get("UNLEARN_SWEEP"),
        job_type=labels.kind(config, role),
        name=labels.title(config, role),
        run_id=job.fingerprint,
        tags=[*labels.tags(config, role), *settings.tags],
        config=cleaned({**science, "fingerprint": job.fingerprint, "role": role}),
        directory=rundir.path,
        logged=rundir.read_history(),
    )


def show(tracker: Tracker, job: Job, role: str, rundir: RunDir, summary: Mapping[str, float]) -> None:
    """The results of a finished run, its tables and figures, and the model where it is asked for.

    Nothing here can fail the run, whose own files are complete.
    """
    if isinstance(tracker, NullTracker):
        return
    try:
        tracker.summary(summary)
        tracker.table("results", ["metric", "value"], [[key, value] for key, value in summary.items()])
        show_files(tracker, rundir)
        show_figures(tracker, job.baselines, rundir, summary)
        if job.config.tracker.model and role == labels.WANTED and job.config.method.makes_model:
            _show_model(tracker, job, rundir, summary)
    except Exception as error:
        log.warning("W&B did not get all of this run's files (%s: %s)", type(error).__name__, error)


def _show_model(tracker: Tracker, job: Job, rundir: RunDir, summary: Mapping[str, float]) -> None:
    if not rundir.model.is_dir():
        log.warning("tracker.model=true, but save_model=false kept no model: there is none to upload")
        return
    facts = {"fingerprint": job.fingerprint, "method": job.config.method.name, "seed": job.config.seed}
    tracker.model(rundir.path.name, rundir.model, facts | {key: summary[key] for key in shown(summary)})


def show_files(tracker: Tracker, rundir: RunDir) -> None:
    """Samples of what was generated or scored, benchmark by benchmark, and what a probe saw last."""
    for file in sorted(rundir.eval.glob("*/examples.parquet")):
        columns = _columns(pq.read_schema(file))
        if "set" not in columns:  # no example at all
            continue
        sets: dict[str, list[list[Any]]] = {}
        for row in pq.read_table(file, columns=columns).to_pylist():
            sets.setdefault(row["set"], []).append([_cell(row[column]) for column in columns])
        sample = [row for group in sets.values() for row in group[:_SAMPLES]]
        kind = "generations" if "generation" in columns else "examples"
        tracker.table(f"{file.parent.name}/{kind}", columns, sample)
    for name, columns, rows in tracked(rundir.path):
        tracker.table(name, columns, rows)


def show_figures(
    tracker: Tracker, baselines: Baselines, rundir: RunDir, summary: Mapping[str, float]
) -> None:
    """Forgetting against utility, with the target, the retain model and the way there: no panel of W&B's."""
    models: dict[str, Mapping[str, float | None]] = {}
    for name, folder in (("target", baselines.target), ("retain model", baselines.retain)):
        if folder is not None and (folder / "results.json").is_file():
            models[name] = read_json(folder / "results.json")
    if not models:
        return
    for number, figure in enumerate(trade_offs({**models, "unlearned": summary}, history(rundir.path))):
        tracker.figure(f"figures/trade-off-{number}" if number else "figures/trade-off", _plain(figure))


def _plain(figure: Figure) -> dict[str, Any]:
    """Plotly's own: a colour in place of every trace's role."""
    data = []
    for trace in figure.data:
        colour = {"color": _COLOURS.get(trace["role"], "#64748b")}
        drawn = {key: value for key, value in trace.items() if key != "role"}
        data.append(drawn | {part: trace.get(part, {}) | colour for part in ("marker", "line")})
    title = {"text": figure.title, "subtitle": {"text": figure.hint}}
    return {"data": data, "layout": {**figure.layout, "title": title}}


def _columns(schema: pa.Schema) -> list[str]:
    """Those of a benchmark's rows that a table shows: what was asked and said, and every number."""
    texts = [name for name in _TEXTS if name in schema.names]
    return texts + [field.name for field in schema if pa.types.is_floating(field.type)]


def _cell(value: Any) -> Any:
    return f"{value[:_LONGEST]}…" if isinstance(value, str) and len(value) > _LONGEST else value
