"""W&B itself: whether there is a key for it, and how a run of it is opened."""

from __future__ import annotations

import logging
import netrc
import os
import shlex
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from launch.private import Scrubbing

log = logging.getLogger(__name__)

Mode = Literal["auto", "online", "offline", "disabled"]
PROGRAM = "unlearn"
"""What W&B is told to be the program; it would send the path of the command."""
# Seconds to wait for the service: when a run is opened, and at its end, for what is still to be sent.
_INIT, _FINISH = 30.0, 900.0
_SCRUBBING = Scrubbing()
# W&B's own service answers under two names, and a netrc file may have the key under the older one.
_ALSO = {"api.forge.coreweave.com": "api.wandb.ai"}


def open_run(mode: Mode, directory: Path, identity: Mapping[str, Any], config: Mapping[str, Any]) -> Any:
    """A `wandb.Run` in `directory/wandb`; offline where the service should be used and does not answer.

    mode: "auto" obeys WANDB_MODE where it is set, else is "online" if a key is configured, else "offline".

    Raises:
        PermissionError: the directory cannot be written.
        Exception: whatever W&B finds wrong with the identity.
    """
    directory = directory.absolute()  # W&B's process may have begun in another folder
    directory.mkdir(parents=True, exist_ok=True)
    if not os.access(directory, os.W_OK):
        # W&B itself would fall back to a temporary folder without a word.
        raise PermissionError(f"the directory {directory} cannot be written")
    import wandb

    settings = _settings()
    session = wandb.setup(settings).settings
    logging.getLogger("wandb").addFilter(_SCRUBBING)  # its debug.log, beside the data
    chosen: Any = mode
    if mode == "auto":
        chosen = os.environ.get("WANDB_MODE") or ("online" if key_configured(session) else "offline")
    given = {**identity, "config": dict(config), "dir": directory, "resume": "allow", "settings": settings}
    try:
        run = wandb.init(**given, mode=chosen)
    except Exception as error:
        if chosen != "online":
            raise
        wandb.teardown()  # it holds the id
        run = wandb.init(**given, mode="offline")
        log.warning(
            "W&B did not take the run (%s: %s). It is logged offline; send it later with "
            "`python -m launch.sync %s`",
            type(error).__name__,
            " ".join(str(error).split()),
            shlex.quote(str(directory)),
        )
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
