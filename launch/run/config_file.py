"""config.yaml of a run directory: the configuration, the job of the run, versions and host."""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from launch.job import Baselines, Job
from launch.redact import expanded, portable, scrubbed
from unlearn.config import PRECISION, RunConfig
from unlearn.errors import UserError
from unlearn.files import BrokenFile, replacing
from unlearn.models.weights import WeightsSource
from unlearn.processor import processor
from unlearn.run_dir import RunDir

if TYPE_CHECKING:
    from launch.run.plan import Planned

_PACKAGES = ("unlearn-lab", "torch", "transformers", "accelerate", "deepspeed", "peft", "numpy", "wandb")


def write_config(run: Planned, command: Sequence[str] | None = None) -> None:
    """Write the resolved configuration with its fingerprint, job, git revision and package versions.

    `command`: the arguments of the command that makes the run, as typed; None where there is none.

    Raises:
        BrokenFile: an existing config.yaml cannot be read.
        UserError: the directory holds another run.
    """
    from omegaconf import OmegaConf

    rundir, job = run.rundir, run.job
    # The precision of the training, where that began with an earlier command.
    trained: Mapping[str, Any] | None = None
    if rundir.config.is_file():
        stored = read_stored(rundir)
        fingerprint = stored["fingerprint"]
        if fingerprint != job.fingerprint:
            raise UserError(
                f"{run.directory} holds another run (fingerprint {fingerprint}, not {job.fingerprint}): "
                "choose another hydra.run.dir, or remove the folder"
            )
        if rundir.model.is_dir() or rundir.checkpoint_steps():
            trained = trained_with(stored)
    values = {
        **job.config.model_dump(mode="json"),
        "fingerprint": job.fingerprint,
        "job": {
            "role": run.role,
            "start": asdict(job.start),
            "reinforced": asdict(job.reinforced) if job.reinforced else None,
            "unlearned": asdict(job.unlearned) if job.unlearned else None,
            "beside": {name: str(path) if path else None for name, path in vars(job.baselines).items()},
            "evaluation_key": run.evaluation_key,
            "trained": trained,
        },
        "command": None if command is None else [scrubbed(word.lstrip("+")) for word in command],
        "versions": _versions(),
        "git": _git_revision(),
        "host": {
            "system": platform.system(),
            "machine": platform.machine(),
            "processor": _processor(job.config.hardware.device),
            "python": platform.python_version(),
        },
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with replacing(rundir.config) as temporary:
        OmegaConf.save(OmegaConf.create(portable(values)), temporary)
        # Results of another evaluation must not count as this run's while it is being made; they stay where
        # there is no room for the configuration.
        rundir.results.unlink(missing_ok=True)


def check_folder(directory: Path) -> None:
    """Check that a folder that the user chose for a run is empty or holds one.

    Raises:
        UserError: it holds something else, which the run would overwrite or remove.
    """
    rundir, where = RunDir(directory), f"hydra.run.dir={directory}"
    if rundir.config.is_file():
        try:
            stored: Mapping[str, Any] = read_config(rundir)
        except BrokenFile:
            stored = {}
        if "fingerprint" not in stored:
            raise UserError(f"{where}: its config.yaml is not of a run; choose another folder")
    elif directory.is_dir():
        # A killed process may have left a lock, temporary files and a log.
        names = sorted(each.name for each in directory.iterdir() if not each.name.startswith("."))
        if others := [name for name in names if name != rundir.log.name]:
            raise UserError(
                f"{where}: the folder holds no run, but {', '.join(others[:3])}, which a run might overwrite "
                "or remove; choose another folder"
            )


def read_config(rundir: RunDir) -> dict[str, Any]:
    """Return config.yaml as a plain mapping; paths below the home directory are stored as `~/…`.

    Raises:
        FileNotFoundError: there is no config.yaml.
        BrokenFile: the file is not YAML, or not a mapping.
    """
    try:
        values = yaml.load(rundir.config.read_text(encoding="utf-8"), Loader=_loader())
    except FileNotFoundError:
        raise
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise BrokenFile(rundir.config, next(iter(str(error).splitlines()), type(error).__name__)) from error
    if not isinstance(values, dict):
        raise BrokenFile(rundir.config, "it holds no configuration")
    return values


def key_places(text: str) -> Iterator[tuple[int, int, str]]:
    """Yield where each key of the text of a config.yaml begins and ends, with its dotted name, in order."""
    yield from _keys_below(yaml.compose(text, Loader=_loader()), "")


def _keys_below(node: Any, above: str) -> Iterator[tuple[int, int, str]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            yield key.start_mark.index, key.end_mark.index, f"{above}{key.value}"
            yield from _keys_below(value, f"{above}{key.value}.")


def read_stored(rundir: RunDir) -> dict[str, Any]:
    """Return the mapping that `write_config` wrote.

    Raises:
        BrokenFile: the file was cut short or overwritten.
    """
    values = read_config(rundir)
    if "fingerprint" not in values or not isinstance(values.get("job"), Mapping):
        raise BrokenFile(rundir.config, "it has no fingerprint")
    return values


def trained_with(stored: Mapping[str, Any]) -> dict[str, Any]:
    """Return the precision in which the run of a config.yaml was trained; an evaluation may have another."""
    made = stored["job"].get("trained") or stored.get("hardware", {})
    return {key: made[key] for key in PRECISION if key in made}


def read_job(rundir: RunDir) -> tuple[Job, str]:
    """Return the job of a run directory and its role in the plan.

    `~` in a stored path is expanded to the home directory of the reader.

    Raises:
        BrokenFile: the file was cut short or overwritten.
    """
    stored = expanded(read_stored(rundir))
    config = RunConfig.model_validate({k: v for k, v in stored.items() if k in RunConfig.model_fields})
    job: dict[str, Any] = stored["job"]
    baselines = Baselines(**{name: Path(path) if path else None for name, path in job["beside"].items()})
    reinforced = WeightsSource(**job["reinforced"]) if job["reinforced"] else None
    unlearned = WeightsSource(**job["unlearned"]) if job.get("unlearned") else None
    start = WeightsSource(**job["start"])
    made = Job(config, stored["fingerprint"], start, baselines, reinforced, unlearned)
    return made, str(job["role"])


@cache
def _loader() -> type[Any]:
    """Return libyaml's loader, ten times as fast as Python's, with OmegaConf's types.

    1e-5 is a number, which YAML 1.1 reads as text; a date stays text.
    """
    base: type[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith(":timestamp")]
            for first, resolvers in base.yaml_implicit_resolvers.items()
        }

    number = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+0123456789"))
    return Loader


@cache
def _versions() -> dict[str, str]:
    return {package: version(package) for package in _PACKAGES}


@cache
def _processor(device: str) -> str:
    """Return the name of the GPU or of the CPU."""
    if device == "cuda":
        import torch  # reports that read this file start without it

        if torch.cuda.is_available():
            return torch.cuda.get_device_name()
    return processor()


@cache
def _git_revision() -> str | None:
    """Return the git revision of the program at its first run; None without its checkout, or without git."""
    checkout = Path(__file__).resolve().parents[2]
    if not (checkout / ".git").exists():  # else it may be in the environment of another project
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=checkout, capture_output=True, text=True
        )
    except OSError:
        return None
    return described.stdout.strip() or None
