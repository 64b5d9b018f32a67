"""One run as Hydra launches it, in this or another process: from the composed configuration to its table."""

from __future__ import annotations

import os
import platform
import signal
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
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
from launch.sweep.gpus import dealt
from launch.sweep.job_records import Records
from launch.sweep.sweep_run import SweepRun
from unlearn.config import RunConfig
from unlearn.errors import UserError
from unlearn.files import check_writable
from unlearn.garbage import pause_collection
from unlearn.guard import lasting_output, outcome
from unlearn.processor import allowed_cores
from unlearn.run_dir import RunDir
from unlearn.signals import STOPPED, STOPPING, on_stop

if TYPE_CHECKING:
    from launch.resolve import Resolved
    from launch.run.log_warnings import Warned
    from launch.run.plan import Plan

INTERRUPTED = "stopped by a signal; start it again to continue"
_LEARNED = 0.5  # mean probability of the forget set's answers
_MAX_PROBLEMS = 5  # of an evaluation, in the terminal


@dataclass(frozen=True)
class SweepJob:
    """The function that Hydra calls for each job of a sweep, in any process; it is pickled.

    `command`: the process of the command (`process()`). A launcher without other processes calls the jobs
    there, one after the other.
    """

    records: Records
    command: tuple[str, int]

    def __call__(self, composed: DictConfig) -> float | None:
        """Return the value for an optimising sweeper; None without a goal, or if the run failed."""
        number, overrides = job_number(), tuple(HydraConfig.get().overrides.task)
        here = process() == self.command
        if not here:
            lasting_output()
            pause_collection()
        os.environ["UNLEARN_SWEEP"] = self.records.folder.name  # the tracker's group
        if self.records.stopping():
            if here:
                raise KeyboardInterrupt  # otherwise Hydra continues with the next job
            return None
        if not leads():  # the first task of the step writes the records
            return guarded(composed, in_child=not here).value
        try:
            if not here and _of_pool():  # from its record on, a job that is stopped says so
                for stopping in STOPPING:
                    signal.signal(stopping, lambda received, _: interrupt(received))
            self.records.begin(number, overrides)
            title = self.records.title(number)
            Console().print(title, style="bold", soft_wrap=True, highlight=False, markup=False)
            sys.stdout.flush()  # the log may be read meanwhile
            run = guarded(composed, in_child=not here, gpus=self.records.folder / "gpus")
        except KeyboardInterrupt:
            run = SweepRun(overrides, None, INTERRUPTED, code=STOPPED)
        self.records.end(number, run)
        if run.code == STOPPED:
            try:
                slurm.requeue()
            except UserError as error:
                self.records.end(number, replace(run, reason=str(error)))
        if here and run.code == STOPPED:
            raise KeyboardInterrupt
        return run.value


def job_number() -> int:
    """Return the number of this job in its sweep: of a search, that of the trial in the study."""
    hydra = HydraConfig.get()
    trial = hydra.sweeper.trial if "trial" in hydra.sweeper else None
    return int(hydra.job.num if trial is None else trial)


def process() -> tuple[str, int]:
    """Return machine and id of this process."""
    return platform.node(), os.getpid()


def guarded(composed: DictConfig, *, in_child: bool = False, gpus: Path | None = None) -> SweepRun:
    """Make a run of a sweep; `gpus` as in `one_run`.

    In a child process of a pool, signals are ignored afterwards: between two jobs there is nothing to stop,
    and the pool would take the process for dead.
    """
    try:
        return one_run(composed, in_child=in_child, gpus=gpus)
    finally:
        if in_child and _of_pool():
            for number in STOPPING:
                signal.signal(number, signal.SIG_IGN)


def one_run(
    composed: DictConfig,
    *,
    in_child: bool = False,
    gpus: Path | None = None,
    resolved: Resolved | None = None,
) -> SweepRun:
    """Make one composed run, from check to table; errors are printed and returned, not raised.

    A configuration that was `resolved` before is not resolved again. `gpus`: the folder in which the jobs of
    a pool lock their GPUs.
    """
    from launch.run.log_warnings import Warned
    from unlearn.signals import Stopped

    hydra_config = HydraConfig.get()
    overrides = tuple(hydra_config.overrides.task)
    warned, output = Warned(), Path(hydra_config.runtime.output_dir)
    try:
        foreign_launchers.settle()
        with on_stop(interrupt), ExitStack() as held:
            searched = hydra_config.mode == RunMode.MULTIRUN and "n_trials" in hydra_config.sweeper
            if resolved is None:
                config = checked(composed, overrides, hydra_config.runtime.choices)
                if config.dry_run:
                    dry_run(config)
                    return SweepRun(overrides, None)
                if in_child and _of_pool():
                    config = _sharing(config, int(hydra_config.launcher.n_jobs))
                    if gpus is not None:
                        held.enter_context(dealt(config.hardware, gpus))
                resolved = _resolved(config, output, searched=searched)
            run = _run(resolved, overrides, warned, in_child=in_child, searched=searched)
    except (Stopped, KeyboardInterrupt) as stopped:
        reason = str(stopped) or INTERRUPTED
        sys.stderr.write(f"{reason}\n")
        run = SweepRun(overrides, None, reason, code=STOPPED)
    except Exception as error:
        text, code = outcome(error)
        sys.stderr.write(f"{text}\n")
        run = SweepRun(overrides, None, " ".join(text.split()), code=code)
        chosen = any(override.startswith("hydra.run.dir=") for override in hydra_config.overrides.hydra)
        if not chosen and output != Path.cwd():
            with suppress(OSError):  # the folder that Hydra made for a refused run
                output.rmdir()
    if hydra_config.mode != RunMode.MULTIRUN and leads():  # a sweep prints those of all jobs at its end
        for line in warned.lines():
            Console().print(line, soft_wrap=True, highlight=False, markup=False)
    return replace(run, warnings=warned.texts)


def interrupt(_: int) -> None:
    """Stop the run at once on a signal; only training ends its step and writes a checkpoint first."""
    for number in STOPPING:
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _of_pool() -> bool:
    return "n_jobs" in HydraConfig.get().launcher


def _sharing(config: RunConfig, jobs: int) -> RunConfig:
    """The configuration with its share of the threads, unless hardware.threads is set."""
    if config.hardware.threads is not None:
        return config
    cores = allowed_cores()
    jobs = cores if jobs < 0 else jobs
    threads = max(1, cores // (jobs * config.hardware.processes))
    return config.model_copy(update={"hardware": config.hardware.model_copy(update={"threads": threads})})


def _resolved(config: RunConfig, output: Path, *, searched: bool) -> Resolved:
    from launch.resolve import resolve

    unnamed = output == Path(config.root).absolute()  # its name was not known when it was composed
    return resolve(config, None if unnamed else output, searched=searched)


def _run(
    resolved: Resolved, overrides: tuple[str, ...], warned: Warned, *, in_child: bool, searched: bool
) -> SweepRun:
    from launch.run.complete import is_complete
    from launch.run.ensure import ensure
    from launch.run.plan_progress import PlanProgress

    config, plan = resolved.config, resolved.plan
    console = Console(quiet=not leads())
    for warning in resolved.warnings:
        console.print(f"warning: {warning}", soft_wrap=True, highlight=False, markup=False)
        warned.add([warning])
    for run in plan.runs:
        if not is_complete(run):
            check_writable(run.directory)
    was_complete = is_complete(plan.main)
    progress = PlanProgress(plan)
    results: Mapping[str, float | None] = {}
    inside = not (in_child and _of_pool() and config.hardware.device == "cuda")
    for number, run in enumerate(plan.runs, start=1):
        note = " (complete)" if is_complete(run) else ""
        line = f"[bold]{number}/{len(plan.runs)}[/] {run.role}: {short(run.directory)}{note}"
        console.print(line, soft_wrap=True, highlight=False)
        with warned.of(run), progress.measuring(run):
            results = ensure(run, command=overrides, progress=not in_child, inside=inside)
        if run is not plan.main and not note:
            console.print(progress.line(), style="dim", soft_wrap=True, highlight=False)
    if not leads():  # the first task of the step reports
        return SweepRun(overrides, plan.main.directory)
    folders = {"target": plan.evaluation("target"), "retain model": plan.evaluation("retain model")}
    baselines = tuple((name, folder) for name, folder in folders.items() if folder)
    _report(console, config, plan, dict(baselines), was_complete=was_complete)
    value, feasible = _goal(config, plan) if searched else (None, None)
    return SweepRun(
        overrides, plan.main.directory, baselines=baselines, value=value, feasible=feasible, results=results
    )  # fmt: skip


def _report(
    console: Console, config: RunConfig, plan: Plan, baselines: Mapping[str, Path], *, was_complete: bool
) -> None:
    """Write the report of a finished run and print its table.

    A run that was complete before may be on a disk that is only read: its report stays as it is.

    What makes it is imported here: before, it would take memory while the run trains.
    """
    from eval.judgement.judge import with_judgement
    from eval.metric_catalog import shown
    from launch.report.page import write_report
    from launch.report.results_table import LEGEND, result_table
    from launch.report.run_files import problems

    target, retain = baselines.get("target"), baselines.get("retain model")
    folder = plan.main.directory
    writable = not was_complete or _is_writable(folder)
    if writable:
        write_report(folder, target_dir=target, retain_dir=retain)
    columns = {name: RunDir(folder).read_results() for name, folder in baselines.items()}
    last = "unlearned" if config.method.start == "target" and config.method.makes_model else "this model"
    columns[last] = plan.main.rundir.read_results()
    columns = with_judgement(columns, own_target=not config.method.makes_model, config=config.eval.judgement)
    keys = shown(key for column in columns.values() for key in column)
    if keys:
        console.print(result_table(columns, keys))
        console.print(LEGEND, style="dim", soft_wrap=True, highlight=False)
    if "target" in columns and any(run.role == "build the target" for run in plan.runs):
        _print_unlearned(console, columns["target"])
    _print_problems(console, problems(folder))
    note = "" if writable else " (not written again: its folder cannot be written)"
    console.print(f"report: {short(folder / 'report.html')}{note}", soft_wrap=True, highlight=False)


def _is_writable(folder: Path) -> bool:
    with suppress(UserError):
        check_writable(folder)
        return True
    return False


def _print_unlearned(console: Console, target: Mapping[str, float | None]) -> None:
    """Warn of a target that was built for this run and has hardly learned what is to be forgotten."""
    key = "tofu/forget/probability"
    if (known := target.get(key)) is not None and known < _LEARNED:
        console.print(
            f"warning: the target has hardly learned the forget set ({key} {known:.3f}), so that there is "
            "little to forget: raise model.finetune.epochs or model.finetune.lr",
            soft_wrap=True, highlight=False, markup=False,
        )  # fmt: skip


def _goal(config: RunConfig, plan: Plan) -> tuple[float, bool]:
    from launch.sweep.objective import goal_value

    folders = {"target": plan.evaluation("target"), "retain": plan.evaluation("retain model")}
    baselines = {n: RunDir(folder).read_results() if folder else {} for n, folder in folders.items()}
    return goal_value(config.goal, plan.main.rundir.read_results(), baselines)


def _print_problems(console: Console, problems: Mapping[str, Sequence[str]]) -> None:
    """Print the first problems of an evaluation; the report has all."""
    lines = [f"{where}: {text}" for where, texts in problems.items() for text in texts]
    for line in lines[:_MAX_PROBLEMS]:
        console.print(line, soft_wrap=True, highlight=False, markup=False)
    if len(lines) > _MAX_PROBLEMS:
        console.print(f"… and {len(lines) - _MAX_PROBLEMS} more in the report", highlight=False)


def dry_run(config: RunConfig, directory: Path | None = None) -> None:
    """Print the plan of a run, in a folder that replaces the one of its fingerprint."""
    from launch.dry_run import show_plan
    from launch.resolve import resolve

    show_plan(resolve(config, directory), Console(quiet=not leads()))


def short(path: Path) -> str:
    """Return a path relative to the working directory, if it is inside."""
    here = Path.cwd()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
