"""Atomic file writes."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unlearn.errors import UserError

_WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the file would exceed the size limit (ulimit -f)",
}


class NoRoom(UserError):
    """A file could not be written for lack of space; `number` is the system's (ENOSPC, EDQUOT or EFBIG)."""

    def __init__(self, path: Path, number: int, written: int, free: int) -> None:
        self.number, self.written, self.free = number, written, free
        after = f" after {_size(written)} of it" if written else ""
        super().__init__(
            f"{path} could not be written: {_WHY[number]} ({_size(free)} are free{after}). Earlier files are "
            "complete: free some space and start again; the run resumes from them"
        )


class BrokenFile(UserError, ValueError):
    """A file was cut short or overwritten. `why` says how it shows; `what` names the file too."""

    def __init__(self, path: Path, why: str) -> None:
        self.why = why
        self.what = f"{path} is broken ({why})"
        super().__init__(f"{self.what}: remove it and start again")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder to write a file or folder to; it replaces `path` at the end.

    By then its content is synced to disk, so that files which it makes obsolete can be removed safely. Its
    files have the permissions of other new files in the folder.

    Raises:
        NoRoom: the disk is full; the previous content stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with room_for(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary)  # left by a killed process with the same id
            yield temporary
            written = [temporary, *temporary.rglob("*")]
            _permit([file for file in written if file.is_file()], _new_mode(temporary))
            for file in written:
                _to_disk(file)
            if path.is_dir():
                if not temporary.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                remove_whole(path)
            os.replace(temporary, path)
            _to_disk(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def room_for(path: Path, written: Path | None = None) -> Iterator[None]:
    """Turn write errors that mean a lack of space into `NoRoom` for this path; `written` is the partial file.

    Of nested errors, the innermost gives the numbers and the outermost the path: a folder, not a file in it.
    """
    try:
        yield
    except NoRoom as error:
        raise NoRoom(path, error.number, error.written, error.free) from error
    except (OSError, SafetensorError) as error:
        if (number := _number(error)) not in _WHY:
            raise
        folder = next(p for p in (path, *path.absolute().parents) if p.is_dir())
        raise NoRoom(path, number, _bytes(written or path), shutil.disk_usage(folder).free) from error


def folder_name(text: str, longest: int = 80) -> str:
    """Turn any text into the name of a folder: no separator, no leading dot, at most `longest` bytes.

    Names of letters, digits and `-_.` are unchanged.
    """
    plain = re.sub(r"[^\w.-]", "_", text.strip()).lstrip(".")
    return plain.encode()[:longest].decode(errors="ignore")


def check_writable(path: Path, label: str = "") -> None:
    """Check that files can be written to a folder, which need not exist yet.

    Raises:
        UserError: it or a folder above it is a file, or is not writable. The message begins with the label,
            by default the path.
    """
    label = label or str(path)
    try:
        existing = next(each for each in (path, *path.absolute().parents) if each.exists())
    except OSError as error:
        raise UserError(f"{label}: {error.strerror}") from None
    if not existing.is_dir():
        where = "it" if existing == path else str(existing)
        raise UserError(f"{label}: {where} is a file, but must be a folder; choose another path")
    if not os.access(existing, os.W_OK | os.X_OK):
        where = "it" if existing == path else f"the folder {existing}"
        raise UserError(f"{label}: {where} cannot be written; choose another path")


def remove_whole(folder: Path) -> None:
    """Remove a folder such that a process that is killed meanwhile leaves no part of it under its name."""
    going = folder.with_name(f".{folder.name}.old.{os.getpid()}.tmp")
    _remove(going)  # left by a killed process with the same id
    with suppress(OSError):
        os.replace(folder, going)
        shutil.rmtree(going, ignore_errors=True)


def leftovers(folder: Path) -> list[Path]:
    """Return temporary files of `replacing` in this folder that killed processes left."""
    return [path for path in folder.glob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", path.name)]


def _number(error: Exception) -> int:
    """Return the system's error number, which safetensors has only in its message."""
    if isinstance(error, OSError):
        return error.errno or 0
    match = re.search(r"os error (\d+)", str(error))
    return int(match[1]) if match else 0


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())


def _size(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1024:.1f} KiB"


def _new_mode(neighbour: Path) -> int:
    """Return the permissions of a new file in the same folder, from the umask or the folder's defaults.

    A sample file is made, as the umask can only be read by setting it, for all threads.
    """
    sample = neighbour.with_name(f".mode-{secrets.token_hex(4)}.{os.getpid()}.tmp")
    descriptor = os.open(sample, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(descriptor).st_mode)
    finally:
        os.close(descriptor)
        sample.unlink()


def _permit(files: Iterable[Path], mode: int) -> None:
    """Set the permissions of files: safetensors makes files that only their owner can read."""
    for file in files:
        if stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def _to_disk(path: Path) -> None:
    """Sync a file, or the names in a folder, to disk, where the file system supports it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """Write JSON atomically, with NaN as null."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(finite(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> dict[str, Any]:
    """Read a file with a JSON object.

    Raises:
        BrokenFile: it is not a complete JSON object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BrokenFile(path, str(error)) from error
    if not isinstance(values, dict):
        raise BrokenFile(path, "no JSON object")
    return values


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Replace NaN and infinity, which JSON does not have, by None."""
    return {
        k: None
        if isinstance(v, float) and not math.isfinite(v)
        else finite(v)
        if isinstance(v, Mapping)
        else v
        for k, v in values.items()
    }


def digest(values: Any) -> str:
    """Return a short hash of JSON values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
