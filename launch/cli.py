"""The one command: `unlearn model=… dataset=… method=… hardware=…`, and `-m` to sweep."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from launch import helptext
from launch.compose import CONFIGS, checked, compose_run, force_overrides, yaml_of
from launch.sweep import Made, summary, table, write_markdown
from unlearn.config import RunConfig
from unlearn.errors import ConfigError, UserError

log = logging.getLogger(__name__)

_TOLD = 5  # problems of an evaluation that the terminal shows


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unlearn`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(command(given))


def command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code (0 done, 2 refused, 75 stopped and resumable)."""
    if "-h" in arguments or "--help" in arguments:
        helptext.show(Console())
        return 0
    try:
        flags = [a for a in arguments if a.startswith("-")]
        overrides = force_overrides(
            [a for a in arguments if a not in ("-c", "--cfg", "job") and a not in flags]
        )
        config = _check(overrides)
        if "--cfg" in flags or "-c" in flags:
            sys.stdout.write(yaml_of(config))
            return 0
        if config.dry_run and not {"-m", "--multirun"} & set(flags):
            return _dry_run(config)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return _through_hydra([*flags, *overrides])


def _check(overrides: Sequence[str]) -> RunConfig:
    composed = compose_run(overrides, hydra=True)
    return checked(composed, overrides, composed.hydra.runtime.choices)


def _through_hydra(arguments: list[str]) -> int:
    """Let Hydra launch the run, or each run of a sweep."""
    if {"-m", "--multirun"} & set(arguments):
        os.environ.setdefault("UNLEARN_SWEEP", f"sweep-{datetime.now(UTC):%Y%m%d-%H%M%S}")
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    codes: list[int] = []
    made: list[Made] = []
    roots: list[Path] = []

    def job(config: DictConfig) -> float | None:
        code, one = _one_run(config)
        codes.append(code)
        roots.append(Path(HydraConfig.get().sweep.dir))
        made.extend([one] if one else [])
        return None

    sys.argv = [sys.argv[0], *arguments]
    hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(job)()
    if len(made) > 1:
        file = roots[0] / f"{os.environ['UNLEARN_SWEEP']}.md"
        found = summary(made)
        write_markdown(file, found)
        console = Console()
        console.print(table(found))
        for label, reason in found.failed:
            console.print(f"failed: {label}: {reason}", soft_wrap=True, highlight=False, markup=False)
        console.print(f"sweep: {_short(file)}", soft_wrap=True, highlight=False)
    return max(codes, default=0)


def _one_run(composed: DictConfig) -> tuple[int, Made | None]:
    """One composed run, from check to table; errors are told here, so that a sweep goes on.

    Returns the exit code and, unless nothing was to be made, what a sweep's table says of it.
    """
    from unlearn.trainer import Stopped

    hydra_config = HydraConfig.get()
    overrides = tuple(hydra_config.overrides.task)
    try:
        config = checked(composed, overrides, hydra_config.runtime.choices)
        if config.dry_run:
            return _dry_run(config), None
        return 0, _run(config, Path(hydra_config.runtime.output_dir), overrides)
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2, Made(overrides, None, " ".join(str(error).split()))
    except Stopped as stopped:
        sys.stderr.write(f"{stopped}\n")
        return 75, Made(overrides, None, str(stopped))


def _run(config: RunConfig, directory: Path, overrides: tuple[str, ...]) -> Made:
    from launch.check import check
    from launch.judgement import with_judgement
    from launch.plan import make_plan
    from launch.processes import ensure, is_complete
    from launch.report import write_report
    from launch.runfiles import problems
    from launch.table import LEGEND, result_table, shown
    from unlearn.files import read_json

    check(config)
    plan = make_plan(config, directory)
    console = Console()
    for number, run in enumerate(plan.runs, start=1):
        note = " (complete)" if is_complete(run) else ""
        line = f"[bold]{number}/{len(plan.runs)}[/] {run.role}: {_short(run.directory)}{note}"
        console.print(line, soft_wrap=True, highlight=False)
        ensure(run)
    target, retain = plan.evaluation("target"), plan.evaluation("retain model")
    report = write_report(plan.main.directory, target_dir=target, retain_dir=retain)
    columns = {
        name: read_json(folder / "results.json")
        for name, folder in (("target", target), ("retain model", retain))
        if folder is not None
    }
    last = "unlearned" if config.method.start == "target" and config.method.makes_model else "this model"
    columns[last] = read_json(plan.main.rundir.results)
    columns = with_judgement(columns, own_target=not config.method.makes_model)
    keys = shown(key for column in columns.values() for key in column)
    if keys:
        console.print(result_table(columns, keys))
        console.print(LEGEND, style="dim", soft_wrap=True, highlight=False)
    _tell(console, problems(plan.main.directory))
    console.print(f"report: {_short(report)}", soft_wrap=True, highlight=False)
    beside = (("target", target), ("retain model", retain))
    return Made(
        overrides, plan.main.directory, beside=tuple((name, folder) for name, folder in beside if folder)
    )


def _tell(console: Console, problems: Mapping[str, Sequence[str]]) -> None:
    """What could not be measured; the first few, since the report has them all."""
    lines = [f"{where}: {text}" for where, texts in problems.items() for text in texts]
    for line in lines[:_TOLD]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if len(lines) > _TOLD:
        console.print(f"… and {len(lines) - _TOLD} more in the report", highlight=False)


def _dry_run(config: RunConfig) -> int:
    from launch.check import check
    from launch.dryrun import show_plan

    check(config)
    show_plan(config, Console())
    return 0


def _short(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)


def _run_directory(*, _root_: Any) -> str:
    """Hydra's `${unlearn_run_dir:}`: the folder of a run, from its fingerprint."""
    from launch.plan import make_plan

    try:
        return str(make_plan(checked(_root_)).main.directory)
    except (ConfigError, UserError):
        return "."  # the run itself tells what is wrong


def _run_name(*, _root_: Any) -> str:
    """`${unlearn_run_name:}`: that folder's name, within the folder of all runs."""
    return Path(_run_directory(_root_=_root_)).name or "."


def _root(*, _root_: Any) -> str:
    """`${unlearn_root:}`: the folder of all runs."""
    return str(_root_.get("root") or RunConfig.model_fields["root"].default)


OmegaConf.register_new_resolver("unlearn_root", _root, replace=True)
OmegaConf.register_new_resolver("unlearn_run_dir", _run_directory, replace=True)
OmegaConf.register_new_resolver("unlearn_run_name", _run_name, replace=True)


if __name__ == "__main__":
    main()
