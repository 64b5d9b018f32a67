"""Look up tasks without loading their data."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from packaging.version import Version
from pydantic import BeforeValidator

from unlearn.data.readers import content_hash
from unlearn.errors import UserError, did_you_mean
from unlearn.paths import folder_problem, is_folder, user_path

_OLDEST = "0.4.12"  # the first release whose task manager loads flat dictionaries of tasks and groups
_INSTALL = "pip install 'unlearn-lab[lm-eval]'"
_NAME = re.compile(rb"""^["']?(?:task|group|tag)["']?\s*:\s*["']?([\w.:-]+)["']?\s*$""", re.MULTILINE)


class HarnessError(UserError):
    """lm-evaluation-harness cannot run a task; the message names the cause and the fix."""


def problems(tasks: Sequence[str], include_path: str | None) -> list[str]:
    """Return why these tasks cannot be run, as far as it is known without their data; empty: no problem."""
    if problem := _package_problem():
        return [problem]
    own: dict[str, Any] = {}
    if include_path is not None:
        if problem := folder_problem(include_path):
            return [f"include_path={include_path}: {problem}"]
        try:
            own = task_manager(include_path, False).task_index
        except Exception as error:  # the library raises any error of YAML
            why = " ".join(str(error).split())[:200]
            return [f"include_path={include_path}: lm_eval cannot read its task files ({why})"]
    unknown = _unmentioned([task for task in tasks if task not in own])
    if unknown:  # names composed from several files are only in the whole index, which takes seconds
        known = task_manager(include_path, True).all_tasks
        unknown = [task for task in unknown if task not in known]
    return [f"lm_eval has no task {task!r}{_near(task, known)}" for task in unknown]


def _named(names: Any) -> Any:
    return (names,) if isinstance(names, str) else names


Names: TypeAlias = Annotated[tuple[str, ...], BeforeValidator(_named)]
"""Names of tasks or parts; a single name is accepted too."""


def check_counts(fewshot: int | None, limit: int | None) -> None:
    """Raise ValueError for an impossible number of examples."""
    if fewshot is not None and fewshot < 0:
        raise ValueError(f"fewshot={fewshot}; it must be ≥ 0")
    if limit is not None and (limit < 1 or limit != int(limit)):
        raise ValueError(f"limit={limit}; it must be a number of examples ≥ 1")


def manager(tasks: Sequence[str], include_path: str | None) -> Any:
    """Return the harness's `TaskManager` for these tasks.

    The 14 000 files of the library are read only if those under `include_path` are not enough.

    Raises:
        HarnessError: there is no such task, or the harness is not installed.
    """
    if causes := problems(tasks, include_path):
        raise HarnessError("; ".join(causes))
    if include_path is not None:
        own = task_manager(include_path, False)
        if _complete(own, tasks):
            return own
    return task_manager(include_path, True)


def _package_problem() -> str | None:
    if importlib.util.find_spec("lm_eval") is None:
        return f"the package lm_eval is not installed: {_INSTALL}"
    version = importlib.metadata.version("lm_eval")
    if Version(version) < Version(_OLDEST):
        return f"lm_eval {version} is too old, {_OLDEST} or newer is needed: {_INSTALL} --upgrade"
    return None


@lru_cache(maxsize=8)
def task_manager(include_path: str | None, library: bool) -> Any:
    """Return the manager of a folder's tasks; with `library` also of lm_eval's own, which takes seconds."""
    from lm_eval.tasks import TaskManager

    own = None if include_path is None else str(user_path(include_path))
    return TaskManager(include_path=own, include_defaults=library)


def _unmentioned(names: Sequence[str]) -> list[str]:
    """Return the names that no task file of the library has as the name of a task, a group or a tag."""
    spec = importlib.util.find_spec("lm_eval")
    assert spec is not None
    assert spec.origin is not None
    left = set(names)
    folders = sorted(path for path in (Path(spec.origin).parent / "tasks").iterdir() if path.is_dir())
    for folder in sorted(folders, key=lambda f: not any(name.startswith(f.name) for name in names)):
        if not left:
            break
        for path in folder.rglob("*.yaml"):
            left -= {name.decode() for name in _NAME.findall(path.read_bytes())}
    return [name for name in names if name in left]


def _complete(index: Any, names: Iterable[Any]) -> bool:
    """Whether the index has these tasks, and all members of the groups among them."""
    for name in names:
        member = name.get("group", name.get("task")) if isinstance(name, dict) else name
        if member not in index.task_index:
            return False
        parts = index.task_index[member].cfg["task"] if member in index.all_groups else []
        if not _complete(index, parts if isinstance(parts, list) else [parts]):
            return False
    return True


def _near(task: str, known: Sequence[str]) -> str:
    near = did_you_mean(task, known)
    return near if near.startswith(" (did") else " (`lm_eval ls tasks` lists them)"


def task_files(include_path: str | None) -> dict[str, str]:
    """Return hashes of all files in a folder of task files, by name; data files are included."""
    folder = user_path(include_path) if include_path else None
    if folder is None or not is_folder(folder):
        return {}
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): content_hash(path) for path in files}
