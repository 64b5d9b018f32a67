"""Open runs of W&B, and find out whether there is a key for it."""

from __future__ import annotations

import logging
import netrc
import os
import shlex
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from launch.redact import Scrubbing
from unlearn.errors import UserError, did_you_mean
from unlearn.paths import user_path

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
_MODES: Mapping[str, Mode] = {
    **{"online": "online", "run": "online", "shared": "online"},
    **{"offline": "offline", "dryrun": "offline", "disabled": "disabled"},
}
"""Values of WANDB_MODE. One process writes to a run, so "shared" is the same as "online"."""
PROGRAM = "unlearn"
"""The program's name for W&B, which would send the path of the command otherwise."""
# Seconds to wait for the service when a run is opened, and at its end for the rest to be sent.
_INIT, _FINISH = 30.0, 900.0
_SCRUBBING = Scrubbing()
# The host of W&B's service has two names, and a netrc file may have the key under the older one.
_ALSO = {"api.forge.coreweave.com": "api.wandb.ai"}


def mode_of_variables(environment: Mapping[str, str] | None = None) -> Mode | None:
    """Return the mode that WANDB_DISABLED and WANDB_MODE set; None if neither is set.

    Raises:
        UserError: there is no such mode.
    """
    variables = os.environ if environment is None else environment
    if variables.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on"):
        return "disabled"
    mode = variables.get("WANDB_MODE", "").strip()
    if mode and mode.lower() not in _MODES:
        near = did_you_mean(mode.lower(), ("online", "offline", "disabled"))
        raise UserError(f"WANDB_MODE={mode}: W&B has no such mode{near}; change or unset the variable")
    return _MODES[mode.lower()] if mode else None


@contextmanager
def without_mode_variables() -> Iterator[None]:
    """Hide the variables from W&B, which knows fewer values; the mode is passed to it as an argument."""
    hidden = {name: os.environ.pop(name) for name in ("WANDB_MODE", "WANDB_DISABLED") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


def session(settings: Any = None) -> Any:
    """Return the `wandb.Settings` of this process, from W&B's files and variables."""
    import wandb

    _set_folders()
    with without_mode_variables():
        return wandb.setup(settings).settings


def open_run(mode: Mode, directory: Path, identity: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """Open a `wandb.Run` in `directory/wandb`; offline if the service does not answer.

    mode: "auto" obeys W&B's variables if they are set, else is "online" if a key is configured, else
        "offline".

    Raises:
        PermissionError: the directory cannot be written.
        Exception: any error of W&B about the identity.
    """
    directory = directory.absolute()  # W&B's process may have begun in another folder
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        # W&B itself would fall back to a temporary folder silently.
        raise PermissionError(f"the directory {directory} cannot be written")
    import wandb

    settings = _settings()
    known = session(settings)
    logging.getLogger("wandb").addFilter(_SCRUBBING)  # its debug.log
    chosen: Any = mode
    if mode == "auto":
        chosen = mode_of_variables() or ("online" if key_configured(known) else "offline")
    arguments = {
        **identity,
        "config": dict(config),
        "dir": directory,
        "resume": "allow",
        "settings": settings,
    }
    try:
        with without_mode_variables():
            run = wandb.init(**arguments, mode=chosen)
    except Exception as error:
        if chosen != "online":
            raise
        wandb.teardown()  # it holds the id
        with without_mode_variables():
            run = wandb.init(**arguments, mode="offline")
        log.warning(
            "W&B did not take the run (%s: %s). It is logged offline; send it later with `unlearn sync %s`",
            type(error).__name__,
            " ".join(str(error).split()),
            shlex.quote(str(directory)),
        )
    # W&B reports later imports of libraries to its service; such an import fails if the service has died.
    if (unhook := getattr(run, "_unregister_telemetry_import_hooks", None)) is not None:
        unhook(run.id)
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


@contextmanager
def staged_with(run: Any) -> Iterator[None]:
    """Keep the files that W&B copies to send in the run's folder, so that another machine can sync them."""
    chosen = "WANDB_DATA_DIR" in os.environ
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(run.dir).parents[1]))
    try:
        yield
    finally:
        if not chosen:
            del os.environ["WANDB_DATA_DIR"]


def key_configured(settings: Any) -> bool:
    """Tell whether there is a key where W&B looks for one. Makes no network call.

    Uses public names alone: W&B's reader of netrc files moves between releases. settings: a
    `wandb.Settings`.
    """
    if settings.api_key or settings.identity_token_file or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(settings.base_url).netloc
    netrc_file = os.environ.get("NETRC")
    home = user_path("~")  # stays "~" where neither HOME nor the system's users define it
    usual = [home / ".netrc", home / "_netrc"] if home.is_absolute() else []
    for path in [Path(netrc_file)] if netrc_file else usual:
        if path.is_file():
            try:
                keys = netrc.netrc(path)
            except (netrc.NetrcParseError, OSError):
                continue
            if keys.authenticators(host) or keys.authenticators(_ALSO.get(host, host)):
                return True
    return False


def _set_folders() -> None:
    """Choose a cache folder that can be written; else W&B's own log would go to the terminal.

    Without a home directory W&B also fails to look for its settings there.
    """
    if not user_path("~").is_absolute():
        os.environ.setdefault("WANDB_CONFIG_DIR", os.devnull)  # has no settings
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    existing = next((each for each in (home, *home.parents) if each.exists()), home)
    if not home.is_absolute() or "HOME" not in os.environ or not os.access(existing, os.W_OK):
        folder = Path(tempfile.gettempdir()) / f"unlearn-wandb-{os.getuid()}"
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder))


def _settings() -> Any:
    import wandb

    timeouts = {"init_timeout": _seconds("WANDB_INIT_TIMEOUT", _INIT)}
    if "finish_timeout" in wandb.Settings.model_fields:
        timeouts["finish_timeout"] = _seconds("WANDB_FINISH_TIMEOUT", _FINISH)
    return wandb.Settings(
        **timeouts,
        # nothing in the terminal
        silent=True,
        console="off",
        # of the machine only its load: no code, git remote, host and user name, arguments, packages
        program=PROGRAM,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host="",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        # runs in one process (a sweep) do not end each other
        reinit="create_new",
    )


def _seconds(variable: str, otherwise: float) -> float:
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return otherwise
