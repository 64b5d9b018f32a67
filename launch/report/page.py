"""report.html: one page that shows a run next to its target and its retain model, from files alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.configuration import import_plug_ins
from eval.judgement.judge import judged_columns, with_judgement
from eval.metric_catalog import in_order, info
from launch.report.charts import dynamics, trade_offs, training_curves
from launch.report.depth_charts import depth_charts
from launch.report.geffect.sections import geffect
from launch.report.output import write_files
from launch.report.render import render
from launch.report.robustness_charts import after_attacks
from launch.report.run_files import Results, Run, load
from launch.report.sections import attack_tables, cards, judgements, samples
from launch.report.selection_section import selection_table
from launch.report.settings import flat, judgement_of, split_at_keys
from launch.report.traces import Figure
from launch.run.config_file import read_config
from unlearn.run_dir import RunDir


def write_report(run_dir: Path, *, target_dir: Path | None = None, retain_dir: Path | None = None) -> Path:
    """Write `<run_dir>/report.html`, whole or not at all, and return its path.

    target_dir, retain_dir: run directories of the evaluations to compare with. Files may be missing, there
        and in `run_dir`: the page leaves out what needs them.

    Raises:
        FileNotFoundError: there is no `run_dir`.
        ValueError: a file cannot be read; with its name.
    """
    if not run_dir.is_dir():
        raise FileNotFoundError(f"no run directory {run_dir}: a report is written from the files of a run")
    files = RunDir(run_dir)
    config = read_config(files) if files.config.is_file() else {}
    import_plug_ins(config)
    method = _name(config, "method")
    role = "this model" if method in ("none", "finetune") else "unlearned"
    compared = [("target", target_dir), ("retain model", retain_dir)]
    runs = [load(path, name) for name, path in compared if path is not None and path.is_dir()]
    runs = [run for run in runs if run.results or run.examples] + [load(run_dir, role)]
    columns: dict[str, Results] = {run.role: run.results for run in runs}
    form = judgement_of(flat(config))
    judged = judged_columns(columns, own_target=method == "none", config=form)
    complete = with_judgement(columns, own_target=method == "none", config=form)
    for run in runs:
        run.results = complete[run.role]
    keys = in_order(key for run in runs for key in run.results if not info(key).is_detail)
    rows = files.history_by_step()
    effects, tables = geffect(run_dir, rows)
    stored = files.read_selection()
    values = {
        "title": [method, *(_name(config, key) for key in ("dataset", "model", "fingerprint"))],
        "complete": files.results.is_file(),
        "runs": runs,
        "own": runs[-1],
        "judged": judgements(judged),
        "cards": cards(runs),
        "tables": attack_tables(runs),
        "keys": [key for key in keys if not info(key).variant],
        "changed": [key for key in keys if info(key).variant],
        "samples": list(samples(runs)),
        "problems": runs[-1].problems,
        "config": split_at_keys(files.config.read_text(encoding="utf-8")) if config else [],
        "geffect": tables,
        "selection": selection_table(stored),
    }
    selected = stored.get("on") == "selection"
    page = render(
        "report.html.j2",
        values,
        _charts(runs, rows, effects | {"depth": depth_charts(run_dir, role)}, selected=selected),
        clean=True,
    )
    (report,) = write_files(run_dir, "report", {"html": page})
    return report


def _charts(
    runs: Sequence[Run], rows: list[dict[str, Any]], effects: Mapping[str, list[Figure]], *, selected: bool
) -> dict[str, Sequence[Figure]]:
    models = {run.role: run.results for run in runs}
    benchmarks = {info(key).benchmark for run in runs for key in run.results if info(key).is_metric}
    return {
        "tradeoff": trade_offs(models, rows),
        "attacked": after_attacks(models),
        "training": training_curves(rows, benchmarks),
        "dynamics": dynamics(rows, models, benchmarks, selected=selected),
        **effects,
    }


def _name(config: Mapping[str, Any], key: str) -> str:
    part = config.get(key)
    if isinstance(part, Mapping):
        part = next((part[name] for name in ("name", "id", "path") if part.get(name)), None)
    return str(part) if part is not None else ""
