"""The one command: `unlearn model=… dataset=… method=… hardware=…`, and `-m` to sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import hydra
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.utils import run_job
from hydra.errors import HydraException
from hydra.types import HydraContext, RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write
from rich.console import Console

from launch import commands, slurm
from launch.commands import help as helptext
from launch.compose import (
    PRIMARY,
    check_plugins,
    check_swept,
    checked,
    compose_run,
    force_overrides,
    given_values,
    refuse_sweep,
    search_own_folders,
)
from launch.config_groups import CONFIGS
from launch.flags import parse, prints, show, stored_run, take_folders
from launch.run import foreign_launchers
from launch.run.config_file import read_job
from launch.run.slurm_task import leads
from launch.sweep.hydra_hooks import check_search, hooked, job_count, swept
from launch.sweep.job import INTERRUPTED, SweepJob, dry_run, interrupt, one_run, process
from launch.sweep.job_records import Records, sweep_name
from launch.sweep.sweep_run import SweepRun
from unlearn.config import RunConfig
from unlearn.errors import UserError
from unlearn.files import check_writable, folder_name
from unlearn.garbage import pause_collection
from unlearn.guard import guarded, lasting_output, outcome
from unlearn.paths import is_folder
from unlearn.run_dir import RunDir
from unlearn.signals import STOPPED, on_stop

_RUN_DIRECTORY = "${unlearn_run_dir:}"  # hydra.run.dir in configs/config.yaml


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `unlearn`."""
    lasting_output()
    pause_collection()
    given = list(sys.argv[1:] if arguments is None else arguments)
    sys.exit(command(given))


def command(arguments: list[str]) -> int:
    """Run the command line; returns the exit code (0 done, 2 refused, 75 stopped and resumable)."""
    return guarded(lambda: _command(arguments))


def _command(arguments: list[str]) -> int:
    """
    Raises:
        UserError: what is asked for cannot be done.
    """
    arguments = take_folders(arguments)
    if (code := commands.run(arguments)) is not None:
        return code
    if {"-h", "--help"} & set(arguments):
        helptext.show(Console())
        return 0
    foreign_launchers.settle()  # a launcher may have put flags of its own before the arguments
    flags = parse(arguments)
    if prints(flags):
        return 0
    if flags.experimental_rerun:
        return _again(stored_run(flags.experimental_rerun))
    name, sweep = flags.config_name or PRIMARY, flags.multirun
    overrides = force_overrides(flags.overrides)
    if not flags.cfg:
        _refuse_other_folders(overrides, sweep=sweep)
    if not sweep:
        refuse_sweep(overrides)
    composed = compose_run(overrides, hydra=True, name=name)
    if home := _home_in(composed):
        overrides += home
        composed = compose_run(overrides, hydra=True, name=name)
    if flags.cfg:
        show(flags, composed, overrides)
        return 0
    return _execute(composed, overrides, name, sweep=sweep)


def _execute(composed: DictConfig, overrides: list[str], name: str, *, sweep: bool) -> int:
    """Check a composed configuration, and make its run, its sweep or its dry run.

    name: of the primary file.

    Raises:
        UserError: what is asked for cannot be done.
    """
    config = checked(composed, overrides, composed.hydra.runtime.choices)
    searched = sweep and "n_trials" in composed.hydra.sweeper
    if searched:
        check_search(composed.hydra.sweeper)
    if sweep and not searched:
        check_swept(composed, swept(composed, overrides))
    if not sweep:
        _tell_of_one_run(composed, overrides)
    if composed.hydra.job.chdir:
        raise UserError(
            "hydra.job.chdir=true: paths are meant from where the command is started; leave this out"
        )
    queue = slurm.chosen(composed)
    if queue:
        check_plugins(composed)
        slurm.refuse(composed, config, sweep=sweep)
    if config.dry_run and (not sweep or queue):
        dry_run(config, None if sweep else _chosen_folder(composed))
        if sweep:
            sys.stdout.write(f"{slurm.script(composed, job_count(composed, overrides))}\n")
        return 0
    root = Path(config.root)
    if not config.dry_run:
        _check_root(config, None if sweep else _chosen_folder(composed), sweep=sweep)
    with _without_empty(root):
        if sweep:
            if searched and not config.dry_run:
                from launch.sweep.objective import check_goal

                check_goal(config)
            if queue:
                slurm.check_submission(composed, job_count(composed, overrides))
            arguments = ["-m", f"--config-name={name}", *overrides]
            if not config.dry_run:
                return _sweep(arguments, composed, Path(composed.hydra.sweep.dir))
            with TemporaryDirectory() as folder:  # the records of the sweep stay as they are
                return _sweep(arguments, composed, Path(folder), dry=True)
        return _one(composed, config)


def _check_root(config: RunConfig, directory: Path | None, *, sweep: bool) -> None:
    """Check that runs can be made in `root`; a run that is complete is only read.

    directory: of the run, if not the default one.

    Raises:
        UserError: it cannot be written, and something is to be made.
    """
    root = Path(config.root)
    try:
        check_writable(root, f"root={root}")
    except UserError:
        if sweep or not is_folder(root) or not _is_made(config, directory):
            raise


def _is_made(config: RunConfig, directory: Path | None) -> bool:
    """Return whether each run of the plan is complete."""
    from launch.run.complete import is_complete, without_idle
    from launch.run.plan import make_plan

    with suppress(UserError):  # of the configuration, which cannot be made in this root either
        return all(is_complete(run) for run in without_idle(make_plan(config, directory)).runs)
    return False


def _refuse_other_folders(overrides: Sequence[str], *, sweep: bool) -> None:
    """
    Raises:
        UserError: the folder of a sweep for a single run, or that of a run for a sweep.
    """
    for override in overrides:
        key = override.lstrip("+").partition("=")[0]
        if sweep and key == "hydra.run.dir":
            raise UserError(
                f"{override}: is of a single run; a sweep has hydra.sweep.dir and hydra.sweep.subdir"
            )
        if not sweep and key in ("hydra.sweep.dir", "hydra.sweep.subdir"):
            raise UserError(f"{override}: is of a sweep; add -m, or set hydra.run.dir")


def _home_in(composed: DictConfig) -> list[str]:
    """Overrides with the home directory in place of `~` at the beginning of Hydra's own folders."""
    folders = OmegaConf.to_container(composed.hydra, resolve=False, throw_on_missing=False)
    assert isinstance(folders, dict)
    paths = {f"hydra.{kind}.dir": str(folders[kind]["dir"]) for kind in ("run", "sweep")}
    return given_values([f'{key}="{folder}"' for key, folder in paths.items() if folder.startswith("~")])


def _tell_of_one_run(composed: DictConfig, overrides: Sequence[str]) -> None:
    """
    Raises:
        UserError: the command line chooses how a sweep is made, and asks for none.
    """
    for override in overrides:
        key, _, value = override.partition("=")
        if key in ("hydra/launcher", "hydra/sweeper") and value != "basic":
            raise UserError(f"{override}: is of a sweep; add -m, for a single run too, or leave it out")
    if composed.hydra.sweeper.get("params"):
        sys.stderr.write("experiment: this is one run of a sweep; with -m all of them are made\n")


@contextmanager
def _without_empty(root: Path) -> Iterator[None]:
    """Remove the folder of all runs if it was made for nothing, as when the only run is refused."""
    there = root.exists()
    try:
        yield
    finally:
        if not there:
            with suppress(OSError):
                root.rmdir()


def _again(folder: Path) -> int:
    """Make the run of a folder again as its config.yaml says: continue it, or show what is complete.

    Raises:
        UserError: it is no run of a command, but made for one that compares with it.
    """
    job, role = read_job(RunDir(folder))
    if role == "evaluate the retain model":  # a plan evaluates it, but not as its own run
        raise UserError(f"{folder}: made for other runs ({role}); name one of those, which make it again")
    config = job.config
    if not Path(config.root).is_absolute() and not Path(config.root).is_dir():
        config = config.model_copy(update={"root": str(folder.absolute().parent)})  # called from elsewhere
    return _one(compose_run([], hydra=True), config, folder)


def _one(composed: DictConfig, config: RunConfig, directory: Path | None = None) -> int:
    """One run, with the folder, logging, environment and callbacks of Hydra's configuration."""
    from launch.resolve import resolve

    try:
        with on_stop(interrupt):
            resolved = resolve(config, directory.absolute() if directory else _chosen_folder(composed))
    except KeyboardInterrupt:
        sys.stderr.write(f"{INTERRUPTED}\n")
        return STOPPED
    with read_write(composed), open_dict(composed):
        composed.hydra.mode = RunMode.RUN
        composed.hydra.run.dir = str(resolved.plan.main.directory)
    callbacks = Callbacks(composed)
    context = HydraContext(ConfigLoaderImpl(create_config_search_path(str(CONFIGS))), callbacks)
    callbacks.on_run_start(config=composed, config_name=PRIMARY)
    ended = run_job(
        lambda science: one_run(science, resolved=resolved), composed, "hydra.run.dir", None, context
    )
    callbacks.on_run_end(config=composed, config_name=PRIMARY, job_return=ended)
    run: SweepRun = ended.return_value
    return run.code or 0


def _chosen_folder(composed: DictConfig) -> Path | None:
    """Return the folder that `hydra.run.dir` chooses, None where it is the default."""
    chosen = OmegaConf.to_container(composed.hydra.run, resolve=False)
    if not isinstance(chosen, dict) or chosen["dir"] == _RUN_DIRECTORY:
        return None
    return Path(composed.hydra.run.dir).absolute()


def _sweep(arguments: list[str], composed: DictConfig, root: Path, *, dry: bool = False) -> int:
    """Let Hydra launch the jobs of a sweep; then summarise their results.

    The summary is also made if a launcher raises because one of its processes died.

    Args:
        root: of the records and Hydra's files. dry: whether jobs only show their plans.
    """
    from launch.sweep.summary import conclude  # with the metrics of all benchmarks

    check_plugins(composed)
    chosen = folder_name(os.environ.get("UNLEARN_SWEEP", ""))
    given = [a for a in arguments if not a.startswith("-")]
    name = chosen or sweep_name(given, composed.hydra.job.config_name)
    if dry:
        arguments = [*arguments, f'hydra.sweep.dir="{root}"']
    folder = root.absolute() / "sweeps" / name
    records = Records(folder, "-".join(map(str, process())))
    for stop in (records.all_stop, records.own_stop):  # a killed command of this host and process id, too
        stop.unlink(missing_ok=True)
    problem = ""
    try:
        with hooked(records):
            _launch(SweepJob(records, process()), arguments)
    except KeyboardInterrupt:
        queue = slurm.chosen(composed)
        problem = "no longer waiting: jobs in the queue go on" if queue else "the sweep was stopped"
    except HydraException as error:
        problem = " ".join(str(error).split())
    except Exception as error:  # whatever a launcher's library has
        problem = outcome(error)[0]
    records.own_stop.unlink(missing_ok=True)
    return conclude(records, problem, dry=dry) if leads() else 0


def _launch(job: Callable[[DictConfig], Any], arguments: list[str]) -> None:
    search_own_folders()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its errors and exits
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name=PRIMARY)(job)()
    finally:
        sys.argv = before


def _run_directory(*, _root_: Any) -> str:
    """Hydra's `${unlearn_run_dir:}`: the folder of a run, from its fingerprint."""
    from launch.run.plan import make_plan

    try:
        return str(make_plan(checked(_root_)).main.directory)
    except Exception:  # the run itself tells what is wrong; here it would end the sweep
        return "."


def _run_name(*, _root_: Any) -> str:
    """`${unlearn_run_name:}`: that folder's name, within the folder of all runs."""
    return Path(_run_directory(_root_=_root_)).name or "."


def _root(*, _root_: Any) -> str:
    """`${unlearn_root:}`: the folder of all runs."""
    return os.path.expanduser(_root_.get("root") or RunConfig.model_fields["root"].default)


OmegaConf.register_new_resolver("unlearn_root", _root, replace=True)
OmegaConf.register_new_resolver("unlearn_run_dir", _run_directory, replace=True)
OmegaConf.register_new_resolver("unlearn_run_name", _run_name, replace=True)


if __name__ == "__main__":
    main()
