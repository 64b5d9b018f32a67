"""Whether a directory holds the results that a plan asks for."""

from __future__ import annotations

from launch.job import Baselines
from launch.run.config_file import read_stored
from launch.run.plan import Planned, make_plan
from unlearn.config import RunConfig
from unlearn.errors import UserError


def is_complete(run: Planned) -> bool:
    """Return whether the directory holds the results of this configuration and this evaluation.

    For a run that is made only for its model, any evaluation counts. A run that was to leave no model is made
    again when its model is to be kept.
    """
    rundir, config = run.rundir, run.job.config
    if not rundir.results.is_file() or not rundir.config.is_file():
        return False
    stored = read_stored(rundir)
    if stored["fingerprint"] != run.job.fingerprint:
        return False
    if not config.eval.benchmarks and not config.eval.variants and config.method.makes_model:
        return rundir.model.is_dir() or not config.save_model
    kept = stored.get("save_model", True) or not config.method.makes_model
    if config.save_model and not kept and not rundir.model.is_dir():
        return False
    return run.is_measured(stored["job"]["evaluation_key"])


def refuse_other_baselines(config: RunConfig, baselines: Baselines) -> None:
    """Check that target and retain model are still those that a run was planned with.

    Raises:
        UserError: another command has evaluated one otherwise meanwhile, in the same folder.
    """
    compared = [folder for folder in (baselines.target, baselines.retain) if folder is not None]
    if not compared:
        return
    planned = {run.directory.resolve(): run for run in make_plan(config).runs}
    for folder in compared:
        run = planned.get(folder.resolve())
        if run is not None and not is_complete(run):
            raise UserError(
                f"{folder}: another command has evaluated it otherwise while this run was made, which is "
                "compared with it. Start this command again, which evaluates it anew; what evaluates "
                "otherwise needs another root"
            )
