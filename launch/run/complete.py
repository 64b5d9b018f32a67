"""Whether a directory holds the results that a plan asks for."""

from __future__ import annotations

from dataclasses import replace

from launch.job import Baselines
from launch.run.config_file import read_job, read_stored
from launch.run.plan import Plan, Planned, make_plan
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
    if _is_made_for_its_model(run):
        return rundir.model.is_dir() or not config.save_model
    kept = stored.get("save_model", True) or not config.method.makes_model
    if config.save_model and not kept and not rundir.model.is_dir():
        return False
    return run.is_measured(stored["job"]["evaluation_key"])


def without_idle(plan: Plan) -> Plan:
    """Return the plan without models that are missing and that no run needs which is still to be made."""
    planned = {run.directory: run for run in plan.runs}
    kept: list[Planned] = []
    wanted: set[str | None] = set()
    for run in reversed(plan.runs):
        complete, job = is_complete(run), run.job
        if run is plan.main or complete or not _is_made_for_its_model(run) or str(run.rundir.model) in wanted:
            kept.append(run)
        else:
            continue
        if not complete:
            compared = [planned[folder].job for folder in vars(job.baselines).values() if folder in planned]
            sources = [job.start, job.reinforced, job.unlearned, *(each.start for each in compared)]
            wanted |= {source.source for source in sources if source is not None}
    return Plan(tuple(reversed(kept)))


def with_own_evaluation(run: Planned) -> Planned:
    """Return what is made in the folder of a run whose model is needed.

    The folder may hold results of its own, of a run whose model was not kept (`save_model=false`): then that
    run is made again, with its evaluation. A model that was made to be kept is kept.
    """
    if not run.rundir.config.is_file():
        return run
    stored = read_stored(run.rundir)
    if stored["fingerprint"] != run.job.fingerprint:
        return run
    config = run.job.config
    if not config.save_model and stored.get("save_model", True) and run.rundir.model.is_dir():
        config = config.model_copy(update={"save_model": True})
        return replace(run, job=replace(run.job, config=config))
    if not _is_made_for_its_model(run):
        return run
    try:
        job, role = read_job(run.rundir)
        if not job.config.eval.benchmarks and not job.config.eval.variants:
            return run
        refuse_other_baselines(job.config, job.baselines)
    except (UserError, ValueError):  # of an earlier release, or compared with what is there no longer
        return run
    asked = {key: getattr(config, key) for key in ("hardware", "tracker", "checkpoint")}
    kept = job.config.model_copy(update={**asked, "save_model": True})
    return replace(run, role=role, job=replace(job, config=kept))


def _is_made_for_its_model(run: Planned) -> bool:
    config = run.job.config
    return config.method.makes_model and not config.eval.benchmarks and not config.eval.variants


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
