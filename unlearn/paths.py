"""Resolve the paths that a user gives, or describe what is wrong with them.

Nothing here raises: a name that is too long, circular links and missing permissions are described too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Literal, TypeAlias

PathKind: TypeAlias = Literal["file", "folder"]

_HUB_ID = re.compile(r"\w[\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)


def user_path(path: str | Path) -> Path:
    """Expand a leading `~` or `~name` of a path; that of an unknown user is kept."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def home_folders() -> list[str]:
    """Return the home directory's path and, where it is a link, also the link's target; longest first."""
    home = os.path.expanduser("~")  # "~" where neither HOME nor the system's users define it
    paths = {home, os.path.realpath(home)} if home != "~" else set()
    return sorted((path for path in paths if len(path) > 1), key=len, reverse=True)


def below_home(path: str) -> str:
    """Write a path below the home directory as `~/…`; `user_path` expands it. Other paths are unchanged."""
    for home in home_folders():
        if path == home or path.startswith(f"{home}/"):
            return f"~/{path[len(home) :].lstrip('/')}"
    return path


def file_problem(path: str | Path) -> str | None:
    """Say why a path cannot be read as a file; None where it can."""
    return _problem(path, "file")


def folder_problem(path: str | Path) -> str | None:
    """Say why a path cannot be read as a folder; None where it can."""
    return _problem(path, "folder")


def repository_problem(path: str) -> str | None:
    """Say why a path is neither a folder nor has the form of a hub id; None where it is one of them."""
    problem = folder_problem(path)
    if problem is None or (_HUB_ID.fullmatch(path) and not os.path.lexists(user_path(path))):
        return None
    return problem


def is_file(path: str | Path) -> bool:
    """Whether there is such a file."""
    return _exists(path, stat.S_ISREG)


def is_folder(path: str | Path) -> bool:
    """Whether there is such a folder."""
    return _exists(path, stat.S_ISDIR)


def _exists(path: str | Path, kind: object) -> bool:
    try:
        return bool(kind(user_path(path).stat().st_mode))  # type: ignore[operator]
    except (OSError, ValueError):
        return False


def _problem(named: str | Path, kind: PathKind) -> str | None:
    path = user_path(named)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _cause(path, error, kind)
    except ValueError:  # NUL, or a character that the file system's encoding lacks
        return "it has a character that paths cannot have"
    if kind == "file" and not stat.S_ISREG(mode):
        return "this is a folder, not a file" if stat.S_ISDIR(mode) else "this is not a regular file"
    if kind == "folder" and not stat.S_ISDIR(mode):
        return "this is a file, not a folder"
    if not os.access(path, os.R_OK if kind == "file" else os.R_OK | os.X_OK):
        return f"there is no permission to read this {kind}"
    return None


def _cause(path: Path, error: OSError, kind: PathKind) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return f"there is no such {kind}: the name is longer than the file system allows"
    if error.errno == errno.ELOOP:
        return f"there is no such {kind}: its symbolic links are circular"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"there is no permission to look for this {kind}"
    if error.errno == errno.ENOTDIR:
        through = next((p for p in path.parents if p.is_file()), path.parent)
        return f"there is no such {kind}: {through} is a file, not a folder"
    if error.errno == errno.ENOENT:
        if not path.is_symlink():
            return f"there is no such {kind}"
        return (
            f"there is no such {kind}: the symbolic link leads to {os.readlink(path)}, which does not exist"
        )
    return f"it cannot be read ({error.strerror})"


def is_local(path: str) -> bool:
    """Whether a path means a file or folder on this machine, not an id of the hub."""
    return user_path(path).is_absolute() or path.startswith(".") or is_folder(path) or is_file(path)
