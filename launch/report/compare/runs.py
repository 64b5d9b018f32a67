"""Read one run of a comparison; a run that cannot be compared says why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from eval.metric_catalog import info
from launch.report.run_files import Results
from launch.report.run_groups import RunSettings, Unusable, configuration, method_name, sections_of
from launch.report.settings import flat, settings_of
from unlearn.files import BrokenFile
from unlearn.run_dir import RunDir

RunRole = Literal["run", "target", "retain model"]
ANCHORS: tuple[RunRole, ...] = ("target", "retain model")

TASK = re.compile(
    r"(model|dataset|data|eval)(\.(?!lora\.|lr_scale|variants\.|select\.(?!share$)).+)?|hardware\.dtype"
)
"""Settings that a target and a retain model have too: runs compare where these are the same.

Options of variants change no metric but the variant's own.
"""

_NOT_MEASURED = ("train", "run", "select", "geffect", "loss", "")


@dataclass(frozen=True)
class ComparedRun(RunSettings):
    """A run with its results.

    `baselines`: where the evaluations of the target and the retain model were when the run was made. `rows`:
    the history of a run without a directory. `named`: an option names it as the target or the retain model.
    """

    results: Results = field(repr=False)
    kind: RunRole = "run"
    baselines: Mapping[str, str] = field(default_factory=dict, kw_only=True)
    rows: Sequence[Mapping[str, Any]] = field(default=(), kw_only=True)
    named: bool = field(default=False, kw_only=True)

    def history(self) -> Sequence[Mapping[str, Any]]:
        """Return the history, a row per step.

        Raises:
            BrokenFile: history.jsonl cannot be read.
        """
        return self.rows if self.path is None else RunDir(self.path).history_by_step()


def read_run(path: Path) -> ComparedRun:
    """Read a finished run, or the evaluation of a target or a retain model.

    Raises:
        Unusable: the directory holds none of these, or a file of it cannot be read.
    """
    config = configuration(path)
    job = config.get("job") if isinstance(config.get("job"), Mapping) else {}
    assert isinstance(job, Mapping)
    baselines = job.get("beside") if isinstance(job.get("beside"), Mapping) else {}
    return ComparedRun(
        path.name,
        method_name(config) or path.name,
        settings_of(flat(config)),
        config.get("seed"),
        kind=kind_of(job.get("role", "run")),
        results=_results(path),
        path=path,
        sections=sections_of(config),
        baselines={k: v for k, v in (baselines or {}).items() if isinstance(v, str)},
    )


def kind_of(role: Any) -> RunRole:
    """Return what a run is in a comparison, by its role in the plan or in an archive.

    Raises:
        Unusable: the run was made for other runs alone.
    """
    kind: RunRole = next((name for name in ANCHORS if role in (name, f"evaluate the {name}")), "run")
    if role != "run" and kind == "run":
        raise Unusable(f"made for other runs ({role})")
    return kind


def measured(results: Results) -> list[str]:
    """Return the metrics of benchmarks; among keys without a slash only those that a benchmark declares."""
    return [
        key
        for key in results
        if not info(key).is_detail and (info(key).benchmark not in _NOT_MEASURED or info(key).direction)
    ]


def _results(path: Path) -> Results:
    run = RunDir(path)
    if not run.results.is_file():
        raise Unusable(
            f"not complete, no {run.results.name}{_last_step(run)}; the same command again continues it"
        )
    try:
        results = run.read_results()
    except (BrokenFile, OSError) as error:
        why = error.why if isinstance(error, BrokenFile) else str(error)
        raise Unusable(f"{run.results.name} cannot be read: {why}") from error
    if not measured(results):
        raise Unusable("nothing was measured in it (eval=none?): evaluate it")
    return results


def _last_step(run: RunDir) -> str:
    try:
        rows = run.history_by_step()
    except (ValueError, OSError, KeyError, TypeError):
        return ""
    return f", last logged step {rows[-1]['step']}" if rows else ""
