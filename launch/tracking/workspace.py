"""`unlearn workspace --project P --entity E`: the saved view of a study in W&B, as code."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from eval.judgement.aspects import PREFIX as JUDGED
from eval.metric_catalog import declared_keys, in_order, info, is_benchmark, shown, trade_off_pairs
from launch.report.charts import COUNTERS
from launch.report.discover import run_directories
from launch.report.geffect.files import PREFIX
from launch.report.results_table import arrow
from launch.report.statistics import is_logarithmic
from launch.report.traces import label
from launch.tracking.wandb_session import key_configured, session
from unlearn.arguments import Parser, path_argument
from unlearn.errors import UserError
from unlearn.files import check_writable, folder_name, write_json
from unlearn.guard import tool
from unlearn.run_dir import RunDir

RUNS = Path("runs")
NAME = "Unlearning: trade-off, dynamics, methods"
_OF_TRAINING = ("loss", "loss/forget", "loss/retain", "lr", "grad_norm")
_METHOD = "method.name"
_MAX_BARS = 12
_EXAMPLES = (
    "runs --project my-study --entity my-team",
    "runs --project my-study --entity my-team --out view.json",
)
_DESCRIPTION = """\
Save the view of a study in W&B: trade-off, dynamics, methods. It shows the metrics that the runs have."""


@tool
def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0 done, 2 refused."""
    options = parser().parse_args(arguments)
    if options.out is not None:
        check_writable(options.out.parent, f"--out {options.out}")
    view = workspace(options.entity, options.project, *keys_of(options.runs))
    out = options.out
    if out is None and not _can_save():
        out = Path(f"{folder_name(options.project)}-workspace.json")
        sys.stdout.write("no W&B key is configured: run `wandb login`, then this again, to save the view\n")
    if out is None:
        sys.stdout.write(f"{_saved(view).url}\n")
    else:
        write_json(out, spec(view))
        sys.stdout.write(f"written: {out}; without --out and with a key, it is saved in W&B\n")
    return 0


def keys_of(roots: Iterable[Path]) -> tuple[list[str], list[str]]:
    """Return the metrics and the logged keys of the runs in these folders; without runs the default ones.

    Raises:
        UserError: one of the folders does not exist.
    """
    measured: set[str] = set()
    logged: set[str] = set()
    for root in roots:
        if not root.is_dir() and root != RUNS:
            raise UserError(f"{root}: there is no such folder; name run directories, or a folder of them")
        for run in map(RunDir, run_directories(root) if root.is_dir() else ()):
            if results := run.read_results():
                measured |= results.keys()
                logged |= {key for row in run.history_by_step() for key in row}
    measured = {key for key in measured if not info(key).is_detail}
    usual = declared_keys("default")  # for a study without runs here
    evaluated = [key for key in usual if info(key).benchmark != JUDGED]
    curves = sorted(logged - COUNTERS or {*_OF_TRAINING, *evaluated[:3]})
    return in_order(measured or usual), sorted(curves, key=lambda key: key.split("/")[0] != "loss")


def workspace(entity: str, project: str, measured: Sequence[str], logged: Sequence[str]) -> Any:
    """Return a `wandb_workspaces.workspaces.Workspace` with panels for keys of results and histories.

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
        ws.Section(name=name, panels=charts, is_open=name != "geffect")
        for name, charts in panels.items()
        if charts
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
            pinned_columns=[*columns, *(f"summary:{key}" for key in shown(measured, _MAX_BARS))],
        ),
    )


def spec(view: Any) -> dict[str, Any]:
    """Return the view as W&B stores it.

    Raises:
        UserError: this version of wandb-workspaces does not give it.
    """
    try:
        model = view._to_model()
        stored: dict[str, Any] = json.loads(model.model_dump_json(by_alias=True, exclude_none=True))
    except AttributeError as error:
        raise UserError(
            f"the view cannot be written to a file by this version of wandb-workspaces ({error}); "
            "install 0.4.13, or save it in W&B itself, without --out"
        ) from None
    return stored


def _trade_offs(measured: Sequence[str]) -> list[Any]:
    """Charts of forgetting against utility: of the judgement, and of each benchmark."""
    _, wr, _ = _library()
    pairs: dict[str, str] = {}
    for x, y in trade_off_pairs(measured):
        pairs.setdefault(y, x)
    return [
        wr.ScatterPlot(
            title=f"{label(y)} {arrow(y)} against {label(x)} {arrow(x)}",
            x=wr.SummaryMetric(x),
            y=wr.SummaryMetric(y),
            log_y=True if is_logarithmic(y) else None,
        )
        for y, x in pairs.items()
    ]


def _curves(logged: Sequence[str]) -> list[Any]:
    """A panel per quantity with a line per part or set; of metrics only the most important ones."""
    _, wr, _ = _library()
    evaluated = [key for key in logged if is_benchmark(info(key).benchmark)]
    important = shown(evaluated)
    charts: dict[str, list[str]] = {}
    for key in (*(key for key in logged if not info(key).direction and key not in important), *important):
        parts = key.split("/")
        one = info(key)
        title = f"{one.benchmark} {label(f'{one.benchmark}/{one.metric}')}" if key in important else parts[0]
        charts.setdefault("/".join(parts[:2]) if key.startswith(PREFIX) else title, []).append(key)
    return [wr.LinePlot(title=title, x="Step", y=keys) for title, keys in charts.items()]


def _methods(measured: Sequence[str]) -> list[Any]:
    """A chart per important metric, a bar per method: the mean over its runs, and their spread."""
    _, wr, _ = _library()
    return [
        wr.BarPlot(
            title=f"{key} {arrow(key)}",
            metrics=[key],
            groupby=wr.Config(_METHOD),
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
        )
        for key in shown(measured, _MAX_BARS)
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


def _saved(view: Any) -> Any:
    try:
        return view.save()
    except Exception as error:  # of the network, of permissions, of the library
        raise UserError(
            f"W&B did not take the view of {view.entity}/{view.project} ({type(error).__name__}: {error}): "
            "check that the project has a run and that the key may write there, or give --out FILE.json"
        ) from None


def parser() -> Parser:
    """Return the parser of the arguments."""
    made = Parser("workspace", _EXAMPLES, _DESCRIPTION)
    shows = "run directories whose metrics the view shows, or folders of them (default: runs)"
    made.add_argument("runs", nargs="*", type=path_argument, default=[RUNS], metavar="RUNS", help=shows)
    made.add_argument(
        "--project", required=True, help="the project of the study: tracker.project of its runs"
    )
    made.add_argument("--entity", required=True, help="the user or team that owns the project")
    made.add_argument(
        "--out", type=path_argument, metavar="FILE.json", help="write the view to a file instead"
    )
    return made
