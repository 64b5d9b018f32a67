"""Turn the paths that a user gives into paths of this machine, or into a sentence on what is wrong with them.

Nothing here raises: a name that is too long, a link in a circle or a missing permission is a sentence too.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from pathlib import Path
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["file", "folder"]

_HUB_ID = re.compile(r"\w[\w.-]{0,95}(/[\w.-]{1,96})?", re.ASCII)


def user_path(path: str | Path) -> Path:
    """Return the path with a leading `~` or `~name` expanded; that of an unknown user stays as it is."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def file_problem(path: str | Path) -> str | None:
    """Say why a path cannot be read as a file; None where it can."""
    return _problem(path, "file")


def folder_problem(path: str | Path) -> str | None:
    """Say why a path cannot be read as a folder; None where it can."""
    return _problem(path, "folder")


def repository_problem(path: str) -> str | None:
    """Say why a path is neither a folder nor written like an id of the hub; None where it is one of them."""
    problem = folder_problem(path)
    if problem is None or (_HUB_ID.fullmatch(path) and not os.path.lexists(user_path(path))):
        return None
    return problem


def is_file(path: str | Path) -> bool:
    """Tell whether there is such a file."""
    return _found(path, stat.S_ISREG)


def is_folder(path: str | Path) -> bool:
    """Tell whether there is such a folder."""
    return _found(path, stat.S_ISDIR)


def _found(path: str | Path, kind: object) -> bool:
    try:
        return bool(kind(user_path(path).stat().st_mode))  # type: ignore[operator]
    except (OSError, ValueError):
        return False


def _problem(given: str | Path, wanted: Kind) -> str | None:
    path = user_path(given)
    try:
        mode = path.stat().st_mode
    except OSError as error:
        return _why(path, error, wanted)
    except ValueError:  # NUL, or what the file system's encoding does not have
        return "no path can hold such a character"
    if wanted == "file" and not stat.S_ISREG(mode):
        return "this is a folder, not a file" if stat.S_ISDIR(mode) else "this is no regular file"
    if wanted == "folder" and not stat.S_ISDIR(mode):
        return "this is a file, not a folder"
    if not os.access(path, os.R_OK if wanted == "file" else os.R_OK | os.X_OK):
        return f"there is no permission to read this {wanted}"
    return None


def _why(path: Path, error: OSError, wanted: Kind) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return f"there is no such {wanted}: the name is longer than the file system allows"
    if error.errno == errno.ELOOP:
        return f"there is no such {wanted}: its symbolic links lead in a circle"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"there is no permission to look for this {wanted}"
    if error.errno == errno.ENOTDIR:
        through = next((p for p in path.parents if p.is_file()), path.parent)
        return f"there is no such {wanted}: {through} is a file, not a folder"
    if error.errno == errno.ENOENT:
        if not path.is_symlink():
            return f"there is no such {wanted}"
        return (
            f"there is no such {wanted}: the symbolic link leads to {os.readlink(path)}, which is not there"
        )
    return f"it cannot be read ({error.strerror})"
