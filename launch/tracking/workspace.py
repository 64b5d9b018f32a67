"""`python -m launch.workspace --project P --entity E`: the saved view of a study in W&B, as code."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.judgement.aspects import PREFIX as JUDGED
from eval.metric_catalog import (
    declared_keys,
    direction,
    in_order,
    info,
    is_benchmark,
    is_detail,
    shown,
    split_key,
    trade_off_pairs,
)
from launch.report.charts import COUNTERS
from launch.report.geffect.files import PREFIX
from launch.report.run_files import history
from launch.report.traces import label
from launch.tracking.wandb_session import key_configured, session
from unlearn.errors import UserError
from unlearn.files import check_writable, folder_name, read_json, write_json
from unlearn.guard import given_path, tool

RUNS = Path("runs")
NAME = "Unlearning: trade-off, dynamics, methods"
_OF_TRAINING = ("loss", "loss/forget", "loss/retain", "lr", "grad_norm")
_METHOD = "method.name"
_MOST_BARS = 12


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0 done, 2 refused."""
    given = _parser().parse_args(arguments)
    if given.out is not None:
        check_writable(given.out.parent, f"--out {given.out}")
    made = workspace(given.entity, given.project, *keys_of(given.runs))
    out = given.out
    if out is None and not _can_save():
        out = Path(f"{folder_name(given.project)}-workspace.json")
        sys.stdout.write("no W&B key is configured: run `wandb login`, then this again, to save the view\n")
    if out is None:
        sys.stdout.write(f"{_saved(made).url}\n")
    else:
        write_json(out, spec(made))
        sys.stdout.write(f"written: {out}; without --out and with a key, it is saved in W&B\n")
    return 0


def keys_of(roots: Iterable[Path]) -> tuple[list[str], list[str]]:
    """What runs below the folders have measured at their end, and logged on the way; else the usual.

    Raises:
        UserError: a folder that is named does not exist.
    """
    measured: set[str] = set()
    logged: set[str] = set()
    for root in roots:
        if not root.is_dir() and root != RUNS:
            raise UserError(f"{root}: there is no such folder; name run directories, or a folder of them")
        for file in root.rglob("results.json"):
            if (file.parent / "config.yaml").is_file():  # a run's own, not a benchmark's
                measured |= read_json(file).keys()
                logged |= {key for row in history(file.parent) for key in row}
    measured = {key for key in measured if not is_detail(key)}
    usual = declared_keys("default")  # of a study that has no run here yet
    evaluated = [key for key in usual if info(key).benchmark != JUDGED]
    curves = sorted(logged - COUNTERS or {*_OF_TRAINING, *evaluated[:3]})
    return in_order(measured or usual), sorted(curves, key=lambda key: key.split("/")[0] != "loss")


def workspace(entity: str, project: str, measured: Sequence[str], logged: Sequence[str]) -> Any:
    """A `wandb_workspaces.workspaces.Workspace` of panels for the keys of runs' results and histories.

    Raises:
        UserError: wandb-workspaces is not installed.
    """
    ws, _, expr = _library()
    panels = {
        "trade-off": _trade_offs(measured),
        "dynamics": _curves([key for key in logged if not key.startswith(PREFIX)]),
        "methods": _methods(measured),
        "geffect": _curves([key for key in logged if key.startswith(PREFIX)]),
    }
    sections = [
        ws.Section(name=name, panels=made, is_open=name != "geffect") for name, made in panels.items() if made
    ]
    columns = [f"config:{_METHOD}", "config:dataset.forget", "config:seed"]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=NAME,
        sections=sections,
        settings=ws.WorkspaceSettings(max_runs=100),
        runset_settings=ws.RunsetSettings(
            groupby=[expr.Config(_METHOD)],
            pinned_columns=[*columns, *(f"summary:{key}" for key in shown(measured, _MOST_BARS))],
        ),
    )


def spec(made: Any) -> dict[str, Any]:
    """The view as W&B stores it.

    Raises:
        UserError: this version of wandb-workspaces does not give it away.
    """
    try:
        model = made._to_model()
        stored: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    except AttributeError as error:
        raise UserError(
            f"the view cannot be written to a file by this version of wandb-workspaces ({error}); "
            "install 0.4.13, or save it in W&B itself, without --out"
        ) from None
    return stored


def _trade_offs(measured: Sequence[str]) -> list[Any]:
    """Forgetting up, utility across: the judgements, and what each benchmark has of both."""
    _, wr, _ = _library()
    pairs: dict[str, str] = {}
    for x, y in trade_off_pairs(measured):
        pairs.setdefault(y, x)
    return [
        wr.ScatterPlot(
            title=f"{label(y)} {direction(y)[:1]} against {label(x)} {direction(x)[:1]}",
            x=wr.SummaryMetric(x),
            y=wr.SummaryMetric(y),
            log_y=True if y == "tofu/forget_quality" else None,
        )
        for y, x in pairs.items()
    ]


def _curves(logged: Sequence[str]) -> list[Any]:
    """A panel for each quantity, with a line for each of its parts or sets; of metrics the telling ones."""
    _, wr, _ = _library()
    evaluated = [key for key in logged if is_benchmark(info(key).benchmark)]
    told = shown(evaluated)
    charts: dict[str, list[str]] = {}
    for key in (*(key for key in logged if not direction(key) and key not in told), *told):
        parts = key.split("/")
        bench, _, metric = split_key(key)
        title = f"{bench} {label(f'{bench}/{metric}')}" if key in told else parts[0]
        charts.setdefault("/".join(parts[:2]) if key.startswith(PREFIX) else title, []).append(key)
    return [wr.LinePlot(title=title, x="Step", y=keys) for title, keys in charts.items()]


def _methods(measured: Sequence[str]) -> list[Any]:
    """For each telling metric a bar for each method: the mean over its runs, and their spread."""
    _, wr, _ = _library()
    return [
        wr.BarPlot(
            title=f"{key} {direction(key)[:1]}",
            metrics=[key],
            groupby=wr.Config(_METHOD),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for key in shown(measured, _MOST_BARS)
    ]


def _library() -> tuple[Any, Any, Any]:
    try:
        import wandb_workspaces.reports.v2 as reports
        import wandb_workspaces.workspaces as workspaces
        from wandb_workspaces import expr
    except ImportError as error:
        raise UserError(
            f"saved views need wandb-workspaces ({error}): pip install 'unlearn-lab[wandb]'"
        ) from None
    return workspaces, reports, expr


def _can_save() -> bool:
    return key_configured(session())


def _saved(made: Any) -> Any:
    try:
        return made.save()
    except Exception as error:  # of the network, of rights, of the library's own
        raise UserError(
            f"W&B did not take the view of {made.entity}/{made.project} ({type(error).__name__}: {error}): "
            "check that the project has a run and that the key may write there, or give --out FILE.json"
        ) from None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m launch.workspace", description=__doc__)
    shows = "runs whose metrics the view shows, or folders of them (default: runs)"
    parser.add_argument("runs", nargs="*", type=given_path, default=[RUNS], metavar="RUNS", help=shows)
    parser.add_argument("--project", required=True, help="the study's project, tracker.project of its runs")
    parser.add_argument("--entity", required=True, help="the user or team that it belongs to")
    parser.add_argument(
        "--out", type=given_path, metavar="FILE.json", help="write the view to a file instead"
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
