"""Files that are whole or not there."""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from unlearn.errors import UserError

_WHY = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "files may not be as large (ulimit -f)",
}


class NoRoom(UserError):
    """A file could not be written for want of room; `number` is the system's (ENOSPC, EDQUOT or EFBIG)."""

    def __init__(self, path: Path, number: int, written: int, free: int) -> None:
        self.number, self.written, self.free = number, written, free
        begun = f" after {_size(written)} of it" if written else ""
        super().__init__(
            f"{path} could not be written: {_WHY[number]} ({_size(free)} are free{begun}). What was written "
            "before is whole: make room and start again, and it goes on from there"
        )


class BrokenFile(UserError, ValueError):
    """A file was cut short or overwritten. `why` says how it shows; `what` names the file too."""

    def __init__(self, path: Path, why: str) -> None:
        self.why = why
        self.what = f"{path} is broken ({why})"
        super().__init__(f"{self.what}: remove it and start again")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary neighbour to write to (a file or a folder) that takes the place of `path` at the end.

    By then it is on the disk itself: whatever is removed afterwards in its favour is not missed when the
    machine goes down. Its files have the permissions of any new file here.

    Raises:
        NoRoom: the disk is full; what was there before stays.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with room_for(path, temporary):
            path.parent.mkdir(parents=True, exist_ok=True)
            _remove(temporary)  # of a process of this number that was killed
            yield temporary
            written = [temporary, *temporary.rglob("*")]
            _permit([file for file in written if file.is_file()], _new_mode(temporary))
            for file in written:
                _to_disk(file)
            if path.is_dir():
                if not temporary.is_dir():
                    raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
                shutil.rmtree(path)
            os.replace(temporary, path)
            _to_disk(path.parent)
    finally:
        _remove(temporary)


@contextmanager
def room_for(path: Path, written: Path | None = None) -> Iterator[None]:
    """Errors of writing that mean a lack of room become `NoRoom` for this path; `written` is what was begun.

    The innermost error's figures are kept, the outermost path is named: a folder rather than a file in it.
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
    """Make one folder's name of any text: no separator, no leading dot, at most so many bytes.

    Names of letters, digits and `-_.` stay as they are.
    """
    plain = re.sub(r"[^\w.-]", "_", text.strip()).lstrip(".")
    return plain.encode()[:longest].decode(errors="ignore")


def check_writable(path: Path, label: str = "") -> None:
    """Refuse a folder in which nothing can be written; it need not exist yet.

    Raises:
        UserError: it or one above it is a file, or may not be written. The message begins with the label,
            by itself the path.
    """
    label = label or str(path)
    try:
        found = next(each for each in (path, *path.absolute().parents) if each.exists())
    except OSError as error:
        raise UserError(f"{label}: {error.strerror}") from None
    if not found.is_dir():
        where = "it" if found == path else str(found)
        raise UserError(f"{label}: {where} is a file, and a folder is needed there; choose another path")
    if not os.access(found, os.W_OK | os.X_OK):
        where = "it" if found == path else f"the folder {found}"
        raise UserError(f"{label}: {where} cannot be written; choose another path")


def leftovers(folder: Path) -> list[Path]:
    """What `replacing` had begun in this folder when its process was killed."""
    return [path for path in folder.glob(".*.tmp") if re.fullmatch(r"\..+\.\d+\.tmp", path.name)]


def _number(error: Exception) -> int:
    """The system's error number; safetensors has it in its text only."""
    if isinstance(error, OSError):
        return error.errno or 0
    found = re.search(r"os error (\d+)", str(error))
    return int(found[1]) if found else 0


def _bytes(path: Path) -> int:
    return sum(p.stat().st_size for p in [path, *path.rglob("*")] if p.is_file())


def _size(number: int) -> str:
    for unit, size in (("GiB", 2**30), ("MiB", 2**20)):
        if number >= size:
            return f"{number / size:.1f} {unit}"
    return f"{number / 1024:.1f} KiB"


def _new_mode(neighbour: Path) -> int:
    """The permissions of a file that is made beside this one: by the umask, or by what the folder hands down.

    The umask cannot be read without setting it, for all threads, so a file is made.
    """
    sample = neighbour.with_name(f".mode-{secrets.token_hex(4)}.{os.getpid()}.tmp")
    place = os.open(sample, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        return stat.S_IMODE(os.fstat(place).st_mode)
    finally:
        os.close(place)
        sample.unlink()


def _permit(files: Iterable[Path], mode: int) -> None:
    """Give files these permissions: safetensors makes its own for their owner alone."""
    for file in files:
        if stat.S_IMODE(file.stat().st_mode) != mode:
            file.chmod(mode)


def _to_disk(path: Path) -> None:
    """Wait until a file or the names in a folder are on the disk, where the file system can say so."""
    place = os.open(path, os.O_RDONLY)
    try:
        os.fsync(place)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.EBADF):
            raise
    finally:
        os.close(place)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_json(path: Path, values: Mapping[str, Any]) -> None:
    """JSON with NaN as null, replaced in one move."""
    with replacing(path) as temporary:
        temporary.write_text(
            json.dumps(finite(values), indent=2, ensure_ascii=False) + "\n", encoding="utf-8"
        )


def read_json(path: Path) -> dict[str, Any]:
    """The values of a JSON object.

    Raises:
        BrokenFile: the file holds no whole one.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise BrokenFile(path, str(error)) from error
    if not isinstance(values, dict):
        raise BrokenFile(path, "no JSON object")
    return values


def finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """The same with None in place of NaN and infinity, which JSON does not have."""
    return {
        k: None
        if isinstance(v, float) and not math.isfinite(v)
        else finite(v)
        if isinstance(v, Mapping)
        else v
        for k, v in values.items()
    }


def digest(values: Any) -> str:
    """A short hash of JSON values."""
    text = json.dumps(values, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
