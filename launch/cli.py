"""The one command: `unlearn model=… dataset=… method=… hardware=…`, and `-m` to sweep."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from traceback import extract_tb
from typing import Any

import hydra
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from launch import helptext, slurm
from launch.compose import CONFIGS, check_plugins, checked, compose_run, force_overrides, yaml_of
from launch.nodes.task import leads
from launch.sweeps.conclusion import conclude
from launch.sweeps.job import SweepJob, dry_run, one_run, process
from launch.sweeps.launchers import announced, job_count
from launch.sweeps.records import Records, sweep_name
from unlearn.config import RunConfig
from unlearn.errors import UserError


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
        composed = compose_run(overrides, hydra=True)
        config = checked(composed, overrides, composed.hydra.runtime.choices)
        if "--cfg" in flags or "-c" in flags:
            from launch.dryrun import deepspeed_yaml

            sys.stdout.write(yaml_of(config) + deepspeed_yaml(config))
            return 0
        sweep = bool({"-m", "--multirun"} & set(flags))
        if slurm.chosen(composed):
            check_plugins(composed)
            slurm.refuse(composed, sweep=sweep)
        if config.dry_run and (not sweep or slurm.chosen(composed)):
            dry_run(config)
            if sweep:
                sys.stdout.write(f"{slurm.script(composed, job_count(composed, overrides))}\n")
            return 0
        if sweep:
            return _sweep([*flags, *_search(composed), *overrides], composed)
        if composed.hydra.sweeper.get("params"):
            sys.stderr.write("experiment: this is one run of a sweep; with -m all of them are made\n")
    except UserError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    return _through_hydra([*flags, *overrides])


def _search(composed: DictConfig) -> list[str]:
    """What a sweeper that optimises is to have by itself: larger is better, and the same trials each time."""
    sweeper = composed.hydra.sweeper
    if "n_trials" not in sweeper:
        return []
    optuna = import_module("optuna")
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    unseeded = "seed" in (sweeper.get("sampler") or {}) and sweeper.sampler.seed is None
    return ["hydra.sweeper.direction=maximize", *(["hydra.sweeper.sampler.seed=0"] if unseeded else [])]


def _through_hydra(arguments: list[str]) -> int:
    """Let Hydra launch one run."""
    codes: list[int] = []

    def job(config: DictConfig) -> None:
        codes.append(one_run(config).code or 0)

    _launch(job, arguments)
    return max(codes, default=0)


def _sweep(arguments: list[str], composed: DictConfig) -> int:
    """Let Hydra launch the jobs of a sweep, wherever; then tell what they made.

    A launcher raises when a process of its own died: what the jobs left is told all the same.
    """
    check_plugins(composed)
    name = os.environ.get("UNLEARN_SWEEP") or sweep_name([a for a in arguments if not a.startswith("-")])
    records = Records(Path(composed.hydra.sweep.dir).absolute() / "sweeps" / name)
    records.stop.unlink(missing_ok=True)
    problem = ""
    try:
        with announced(records):
            _launch(SweepJob(records, process()), arguments)
    except KeyboardInterrupt:
        queue = slurm.chosen(composed)
        problem = "no longer waiting: jobs in the queue go on" if queue else "the sweep was stopped"
    except (UserError, HydraException) as error:
        problem = " ".join(str(error).split())
    except Exception as error:  # whatever a launcher's library has
        place = extract_tb(error.__traceback__)[-1]
        told = " ".join(str(error).split())
        problem = f"{type(error).__name__} ({Path(place.filename).name}:{place.lineno}): {told}".strip(": ")
    return conclude(records, problem) if leads() else 0


def _launch(job: Callable[[DictConfig], Any], arguments: list[str]) -> None:
    os.environ["HYDRA_FULL_ERROR"] = "1"  # else Hydra prints its errors and exits
    before = sys.argv
    sys.argv = [before[0], *arguments]
    try:
        hydra.main(version_base="1.3", config_path=str(CONFIGS), config_name="config")(job)()
    finally:
        sys.argv = before


def _run_directory(*, _root_: Any) -> str:
    """Hydra's `${unlearn_run_dir:}`: the folder of a run, from its fingerprint."""
    from launch.plan import make_plan

    try:
        return str(make_plan(checked(_root_)).main.directory)
    except Exception:  # the run itself tells what is wrong; here it would end the sweep
        return "."


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
