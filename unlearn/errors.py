"""Errors that a user can fix: they name the setting, the place and the fix."""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path

_NO_FOLDER = "is a file, but must be a folder: move it, or choose another path"
_MEANS = {
    errno.EEXIST: _NO_FOLDER,
    errno.ENOTDIR: _NO_FOLDER,
    errno.EISDIR: "is a folder, but must be a file: move it, or choose another path",
    errno.EACCES: "permission denied: choose another path, or have its permissions changed",
    errno.EPERM: "permission denied: choose another path, or have its permissions changed",
    errno.EROFS: "is on a file system that cannot be written: choose another path",
    errno.ENAMETOOLONG: "is too long for a path: choose a shorter one",
    errno.ELOOP: "is a link that leads to itself: remove it, or choose another path",
    errno.ENOENT: "there is no such file or folder",
    errno.ENOSPC: "could not be written: the disk is full",
    errno.EDQUOT: "could not be written: the disk quota is used up",
    errno.EMFILE: "could not be opened: too many files are open (ulimit -n)",
}


class UserError(Exception):
    """An error that is shown as one message, without a traceback."""


class ConfigError(UserError):
    """All problems of a configuration, reported before anything is loaded."""

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = list(problems)
        head = "1 problem" if len(self.problems) == 1 else f"{len(self.problems)} problems"
        super().__init__(f"{head} in the configuration:\n" + "\n".join(f"  - {p}" for p in self.problems))


def did_you_mean(wrong: str, known: Iterable[str], elsewhere: Mapping[str, str] | None = None) -> str:
    """Return ` (did you mean …?)`, or the known names where none is similar; a suffix for a message.

    elsewhere: names from other sections that may be meant, each with its full name.
    """
    names, others = sorted(set(known)), elsewhere or {}
    full = {name: name for name in names} | {name: others[name] for name in others if name not in names}
    folded = {name.casefold(): place for name, place in full.items()}
    near = [folded[name] for name in get_close_matches(wrong.casefold(), folded, n=2, cutoff=0.6)]
    if near:
        return f" (did you mean {' or '.join(near)}?)"
    return f" (known: {', '.join(names)})" if names else ""


def listed(names: Iterable[str], limit: int = 3, separator: str = ", ") -> str:
    """Join the first names, and the number of further ones; a part of a message."""
    every = list(names)
    more = f" and {len(every) - limit} more" if len(every) > limit else ""
    return f"{separator.join(every[:limit])}{more}"


def shortened(text: str, width: int) -> str:
    """Return a text of at most this width; a longer one ends in `…`."""
    return text if len(text) <= width else f"{text[: width - 1].rstrip()}…"


def quoted(text: str, width: int = 60) -> str:
    """Quote a text, shortened to this width; a part of a message."""
    return repr(shortened(text, width))


def explained(error: OSError) -> str | None:
    """Describe an error of a path, with its cause; None for other errors."""
    means = _MEANS.get(error.errno or 0)
    if means is None or not isinstance(error.filename, str | bytes | Path):
        return None
    path = Path(error.filename.decode() if isinstance(error.filename, bytes) else error.filename)
    if means is _NO_FOLDER:
        with suppress(OSError):
            path = next((each for each in (path, *path.parents) if each.exists() and not each.is_dir()), path)
    return f"{path}: {means}"
