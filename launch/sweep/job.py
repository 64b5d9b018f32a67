"""One run as Hydra launches it: from the composed configuration to its table, here or in another process."""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig
from rich.console import Console

from launch import slurm
from launch.compose import checked
from launch.run import foreign_launchers
from launch.run.slurm_task import leads
from launch.sweep.job_records import Records
from launch.sweep.summary_table import Made
from unlearn.config import RunConfig
from unlearn.errors import UserError
from unlearn.guard import lasting_output, outcome
from unlearn.signals import STOPPED, STOPPING, on_stop

if TYPE_CHECKING:
    from launch.resolve import Resolved
    from launch.run.log_warnings import Warned
    from launch.run.plan import Plan

INTERRUPTED = "stopped by a signal; started again, it goes on"
_TOLD = 5  # problems of an evaluation that the terminal shows


@dataclass(frozen=True)
class SweepJob:
    """What Hydra calls for each job of a sweep, in whatever process its launcher chooses; it is pickled.

    `command` is the process that was given the command (`process()`). A launcher without processes of its own
    calls the jobs there, one after the other.
    """

    records: Records
    command: tuple[str, int]

    def __call__(self, composed: DictConfig) -> float | None:
        """The value that an optimising sweeper asks for; None without a goal, or where the run failed."""
        number, overrides = int(HydraConfig.get().job.num), tuple(HydraConfig.get().overrides.task)
        here = process() == self.command
        if not here:
            lasting_output()
        os.environ["UNLEARN_SWEEP"] = self.records.folder.name  # the tracker's group
        if self.records.stop.exists():
            if here:
                raise KeyboardInterrupt  # Hydra would go on to the next one
            return None
        if not leads():  # the first task of the step keeps the records
            return guarded(composed, apart=not here).value
        self.records.begin(number, overrides)
        title = self.records.title(number)
        Console().print(title, style="bold", soft_wrap=True, highlight=False, markup=False)
        sys.stdout.flush()  # into a log that is read meanwhile
        made = guarded(composed, apart=not here)
        self.records.end(number, made)
        if made.code == STOPPED:
            try:
                slurm.requeue()
            except UserError as error:
                self.records.end(number, replace(made, reason=str(error)))
        if here and made.code == STOPPED:
            raise KeyboardInterrupt
        return made.value


def process() -> tuple[str, int]:
    """This process among those of all machines."""
    return platform.node(), os.getpid()


def guarded(composed: DictConfig, *, apart: bool = False) -> Made:
    """A run of a sweep.

    In a pool's process `apart` from the command's, signals are ignored afterwards: between two jobs there is
    nothing to be stopped, and the pool would take the process for a dead one.
    """
    try:
        return one_run(composed, apart=apart)
    finally:
        if apart and _of_pool():
            for number in STOPPING:
                signal.signal(number, signal.SIG_IGN)


def one_run(composed: DictConfig, *, apart: bool = False, resolved: Resolved | None = None) -> Made:
    """One composed run, from check to table; whatever ends it is told here, and is in what is returned.

    A configuration that was `resolved` before is not looked at again.
    """
    from launch.run.log_warnings import Warned
    from unlearn.signals import Stopped

    hydra_config = HydraConfig.get()
    overrides = tuple(hydra_config.overrides.task)
    warned, output = Warned(), Path(hydra_config.runtime.output_dir)
    try:
        foreign_launchers.settle()
        with on_stop(interrupt):
            searched = hydra_config.mode == RunMode.MULTIRUN and "n_trials" in hydra_config.sweeper
            if resolved is None:
                config = checked(composed, overrides, hydra_config.runtime.choices)
                if config.dry_run:
                    dry_run(config)
                    return Made(overrides, None)
                if apart and _of_pool():
                    config = _sharing(config, int(hydra_config.launcher.n_jobs))
                resolved = _resolved(config, output, searched=searched)
            made = _run(resolved, overrides, warned, apart=apart, searched=searched)
    except (Stopped, KeyboardInterrupt) as stopped:
        reason = str(stopped) or INTERRUPTED
        sys.stderr.write(f"{reason}\n")
        made = Made(overrides, None, reason, code=STOPPED)
    except Exception as error:
        text, code = outcome(error)
        sys.stderr.write(f"{text}\n")
        made = Made(overrides, None, " ".join(text.split()), code=code)
        own = any(given.startswith("hydra.run.dir=") for given in hydra_config.overrides.hydra)
        if not own and output != Path.cwd():
            with suppress(OSError):  # what Hydra has made for a run that is refused
                output.rmdir()
    if hydra_config.mode != RunMode.MULTIRUN and leads():  # a sweep tells of all its jobs at its end
        for line in warned.lines():
            Console().print(line, soft_wrap=True, highlight=False, markup=False)
    return replace(made, warnings=warned.texts)


def interrupt(_: int) -> None:
    """Outside training, which ends a step and writes a checkpoint first, a signal stops the run at once."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _of_pool() -> bool:
    return "n_jobs" in HydraConfig.get().launcher


def _sharing(config: RunConfig, jobs: int) -> RunConfig:
    """The threads of this machine dealt to so many jobs side by side, where nothing else was asked for."""
    if config.hardware.threads is not None:
        return config
    cores = os.cpu_count() or 1
    jobs = cores if jobs < 0 else jobs
    threads = max(1, cores // (jobs * config.hardware.processes))
    return config.model_copy(update={"hardware": config.hardware.model_copy(update={"threads": threads})})


def _resolved(config: RunConfig, output: Path, *, searched: bool) -> Resolved:
    from launch.resolve import resolve

    unnamed = output == Path(config.root).absolute()  # its name could not be told when it was composed
    return resolve(config, None if unnamed else output, searched=searched)


def _run(
    resolved: Resolved, overrides: tuple[str, ...], warned: Warned, *, apart: bool, searched: bool
) -> Made:
    from eval.judgement.judge import with_judgement
    from eval.metric_catalog import shown
    from launch.report.page import write_report
    from launch.report.results_table import LEGEND, result_table
    from launch.report.run_files import problems
    from launch.run.ensure import ensure, is_complete
    from unlearn.files import check_writable, read_json

    config, plan = resolved.config, resolved.plan
    console = Console(quiet=not leads())
    for warning in resolved.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, highlight=False, markup=False)
        warned.add([warning])
    for run in plan.runs:
        if not is_complete(run):
            check_writable(run.directory)
    for number, run in enumerate(plan.runs, start=1):
        note = " (complete)" if is_complete(run) else ""
        line = f"[bold]{number}/{len(plan.runs)}[/] {run.role}: {short(run.directory)}{note}"
        console.print(line, soft_wrap=True, highlight=False)
        with warned.of(run):
            ensure(run, progress=not apart)
    if not leads():  # the first task of the step tells what was made
        return Made(overrides, plan.main.directory)
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
    console.print(f"report: {short(report)}", soft_wrap=True, highlight=False)
    beside = tuple((n, folder) for n, folder in (("target", target), ("retain model", retain)) if folder)
    value, feasible = _goal(config, plan) if searched else (None, None)
    return Made(overrides, plan.main.directory, beside=beside, value=value, feasible=feasible)


def _goal(config: RunConfig, plan: Plan) -> tuple[float, bool]:
    from launch.sweep.objective import goal_value
    from unlearn.files import read_json

    folders = {"target": plan.evaluation("target"), "retain": plan.evaluation("retain model")}
    beside = {name: read_json(folder / "results.json") if folder else {} for name, folder in folders.items()}
    return goal_value(config.goal, read_json(plan.main.rundir.results), beside)


def _tell(console: Console, problems: Mapping[str, Sequence[str]]) -> None:
    """What could not be measured; the first few, since the report has them all."""
    lines = [f"{where}: {text}" for where, texts in problems.items() for text in texts]
    for line in lines[:_TOLD]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if len(lines) > _TOLD:
        console.print(f"… and {len(lines) - _TOLD} more in the report", highlight=False)


def dry_run(config: RunConfig) -> None:
    """The plan of a run, printed."""
    from launch.dry_run import show_plan
    from launch.resolve import resolve

    show_plan(resolve(config), Console(quiet=not leads()))


def short(path: Path) -> str:
    """A path as one would type it here."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
