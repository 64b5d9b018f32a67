"""W&B itself: whether there is a key for it, and how a run of it is opened."""

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

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
_MODES: Mapping[str, Mode] = {
    **{"online": "online", "run": "online", "shared": "online"},
    **{"offline": "offline", "dryrun": "offline", "disabled": "disabled"},
}
"""Values of WANDB_MODE. One process writes to a run, so that a shared one is an online one."""
PROGRAM = "unlearn"
"""What W&B is told to be the program; it would send the path of the command."""
# Seconds to wait for the service: when a run is opened, and at its end, for what is still to be sent.
_INIT, _FINISH = 30.0, 900.0
_SCRUBBING = Scrubbing()
# W&B's own service answers under two names, and a netrc file may have the key under the older one.
_ALSO = {"api.forge.coreweave.com": "api.wandb.ai"}


def mode_of_variables(environment: Mapping[str, str] | None = None) -> Mode | None:
    """What WANDB_DISABLED and WANDB_MODE ask for; None where neither is set.

    Raises:
        UserError: there is no such mode.
    """
    given = os.environ if environment is None else environment
    if given.get("WANDB_DISABLED", "").strip().lower() in ("1", "true", "yes", "on"):
        return "disabled"
    asked = given.get("WANDB_MODE", "").strip()
    if asked and asked.lower() not in _MODES:
        near = did_you_mean(asked.lower(), ("online", "offline", "disabled"))
        raise UserError(f"WANDB_MODE={asked}: W&B has no such mode{near}; change or unset the variable")
    return _MODES[asked.lower()] if asked else None


@contextmanager
def without_mode_variables() -> Iterator[None]:
    """W&B itself does not see them: it takes fewer words, and a mode is given to it where it counts."""
    aside = {name: os.environ.pop(name) for name in ("WANDB_MODE", "WANDB_DISABLED") if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(aside)


def session(settings: Any = None) -> Any:
    """The `wandb.Settings` of this process, from W&B's files and variables."""
    import wandb

    with without_mode_variables():
        return wandb.setup(settings).settings


def open_run(mode: Mode, directory: Path, identity: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """A `wandb.Run` in `directory/wandb`; offline where the service should be used and does not answer.

    mode: "auto" obeys W&B's variables where they are set, else is "online" if a key is configured, else
        "offline".

    Raises:
        PermissionError: the directory cannot be written.
        Exception: whatever W&B finds wrong with the identity.
    """
    directory = directory.absolute()  # W&B's process may have begun in another folder
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        # W&B itself would fall back to a temporary folder without a word.
        raise PermissionError(f"the directory {directory} cannot be written")
    _find_a_cache()
    import wandb

    settings = _settings()
    known = session(settings)
    logging.getLogger("wandb").addFilter(_SCRUBBING)  # its debug.log, beside the data
    chosen: Any = mode
    if mode == "auto":
        chosen = mode_of_variables() or ("online" if key_configured(known) else "offline")
    given = {**identity, "config": dict(config), "dir": directory, "resume": "allow", "settings": settings}
    try:
        with without_mode_variables():
            run = wandb.init(**given, mode=chosen)
    except Exception as error:
        if chosen != "online":
            raise
        wandb.teardown()  # it holds the id
        with without_mode_variables():
            run = wandb.init(**given, mode="offline")
        log.warning(
            "W&B did not take the run (%s: %s). It is logged offline; send it later with "
            "`python -m launch.sync %s`",
            type(error).__name__,
            " ".join(str(error).split()),
            shlex.quote(str(directory)),
        )
    # It tells its service of each library that is imported later: an import would fail where that has died.
    if (unhook := getattr(run, "_unregister_telemetry_import_hooks", None)) is not None:
        unhook(run.id)
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    return run


@contextmanager
def staged_with(run: Any) -> Iterator[None]:
    """What W&B keeps a copy of to send lies in the run's folder: offline, it is sent from another machine."""
    chosen = "WANDB_DATA_DIR" in os.environ
    os.environ.setdefault("WANDB_DATA_DIR", str(Path(run.dir).parents[1]))
    try:
        yield
    finally:
        if not chosen:
            del os.environ["WANDB_DATA_DIR"]


def key_configured(settings: Any) -> bool:
    """Looks where W&B looks, through public names only: its reader of netrc files moves between releases.

    settings: a `wandb.Settings`. No network call.
    """
    if settings.api_key or settings.identity_token_file or os.environ.get("WANDB_API_KEY"):
        return True
    host = urlsplit(settings.base_url).netloc
    named = os.environ.get("NETRC")
    for path in [Path(named)] if named else [Path.home() / ".netrc", Path.home() / "_netrc"]:
        if path.is_file():
            try:
                known = netrc.netrc(path)
            except (netrc.NetrcParseError, OSError):
                continue
            if known.authenticators(host) or known.authenticators(_ALSO.get(host, host)):
                return True
    return False


def _find_a_cache() -> None:
    """Without a home that can be written, W&B's own log would go to the terminal."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    there = next((each for each in (home, *home.parents) if each.exists()), home)
    if not home.is_absolute() or "HOME" not in os.environ or not os.access(there, os.W_OK):
        folder = Path(tempfile.gettempdir()) / f"unlearn-wandb-{os.getuid()}"
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder))


def _settings() -> Any:
    import wandb

    patience = {"init_timeout": _seconds("WANDB_INIT_TIMEOUT", _INIT)}
    if "finish_timeout" in wandb.Settings.model_fields:
        patience["finish_timeout"] = _seconds("WANDB_FINISH_TIMEOUT", _FINISH)
    return wandb.Settings(
        **patience,
        # nothing in the terminal
        silent=True,
        console="off",
        # nothing of the machine but its load: no code, git remote, host and user name, arguments, packages
        program=PROGRAM,
        save_code=False,
        disable_code=True,
        disable_git=True,
        disable_job_creation=True,
        host="",
        x_disable_meta=True,
        x_disable_machine_info=True,
        x_save_requirements=False,
        # several runs in one process (a sweep) do not end each other
        reinit="create_new",
    )


def _seconds(variable: str, otherwise: float) -> float:
    try:
        return float(os.environ[variable])
    except (KeyError, ValueError):
        return otherwise
