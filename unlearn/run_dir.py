"""The files of one run, written so that a process killed at any moment leaves them usable."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from unlearn.errors import UserError
from unlearn.files import (
    BrokenFile,
    digest,
    finite,
    leftovers,
    read_json,
    remove_whole,
    replacing,
    room_for,
    write_json,
)
from unlearn.reading import lines_of

if TYPE_CHECKING:  # reports and comparisons start without torch
    from torch import Tensor

    from unlearn.config import HardwareConfig

log = logging.getLogger(__name__)
_SHARD_BYTES = 2 << 30


class RunDir:
    """Paths of the files of a run; reads and writes history, results and checkpoints."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.history = path / "history.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.adapter = path / "adapter"
        self.models = path / "models"
        self.selection = path / "selection"
        self.selection_file = path / "selection.json"
        self.geffect = path / "geffect"
        self.geffect_start = self.geffect / "start.safetensors"
        self.eval = path / "eval"
        self.results = path / "results.json"
        self.log = path / "run.log"
        self.memory = path / "memory.json"
        self.unsent = path / "tracker-due"

    # -- history ---------------------------------------------------------------------------------------

    def append_history(self, row: Mapping[str, Any]) -> None:
        """Append a row and flush it, so that a kill loses at most this row.

        Raises:
            NoRoom: the disk is full.
        """
        line = json.dumps(finite(row)) + "\n"
        with room_for(self.history), self.history.open("ab+") as file:
            _drop_cut_line(file)
            file.write(line.encode())

    def read_history(self) -> list[dict[str, Any]]:
        """Return the rows as they were appended, without a last line that a kill cut short.

        Raises:
            BrokenFile: a line before the last one is not JSON; with its number.
        """
        if not self.history.is_file():
            return []
        lines = list(lines_of(self.history.read_text(encoding="utf-8")))
        rows = []
        for number, line in lines:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError as error:
                if number == lines[-1][0]:
                    break
                raise BrokenFile(self.history, f"line {number} is not JSON: {error}") from error
        return rows

    def history_by_step(self) -> list[dict[str, Any]]:
        """Return one row per step: rows of the same step merged, later values over earlier ones.

        Raises:
            BrokenFile: a line before the last one is not JSON.
        """
        steps: dict[int, dict[str, Any]] = {}
        for row in self.read_history():
            steps.setdefault(row["step"], {}).update(row)
        return [steps[step] for step in sorted(steps)]

    def cut_history(self, step: int) -> None:
        """Drop the rows after `step` and the measurements at it, which the resumed training repeats."""

        def repeated(row: Mapping[str, Any]) -> bool:
            return row["step"] > step or (row["step"] == step and "loss" not in row)

        kept = [row for row in self.read_history() if not repeated(row)]
        with replacing(self.history) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    # -- results ---------------------------------------------------------------------------------------

    def write_results(self, metrics: Mapping[str, float]) -> None:
        """Write results.json, with null for NaN. From then on the run counts as complete.

        Raises:
            NoRoom: the disk is full.
        """
        write_json(self.results, metrics)

    def read_results(self) -> dict[str, float | None]:
        """Return the metrics, None for one that could not be measured; {} without results.json.

        Raises:
            BrokenFile: results.json holds no JSON object.
        """
        return numbers(read_json(self.results)) if self.results.is_file() else {}

    # -- selection -------------------------------------------------------------------------------------

    def selected(self, step: int) -> tuple[Path, Path]:
        """Return the folders of the model and of the adapter of a step that may be chosen (`eval.select`)."""
        folder = self.selection / f"step-{step}"
        return folder / "model", folder / "adapter"

    def write_selection(self, selection: Mapping[str, Any]) -> None:
        """Write selection.json: rule, examples, the steps with their metrics, and the chosen one.

        Raises:
            NoRoom: the disk is full.
        """
        write_json(self.selection_file, selection)

    def read_selection(self) -> dict[str, Any]:
        """Return what was written, null for NaN; {} without selection.json.

        Raises:
            BrokenFile: selection.json holds no JSON object.
        """
        return read_json(self.selection_file) if self.selection_file.is_file() else {}

    # -- memory ----------------------------------------------------------------------------------------

    def write_memory(self, hardware: HardwareConfig, fitting: Mapping[str, int], restarts: int) -> None:
        """Write the portions that fit in memory, by key of `hardware`, and how often the run began again."""
        self._write_memory(hardware, fitting=dict(fitting), restarts=restarts)

    def read_memory(self, hardware: HardwareConfig) -> tuple[dict[str, int], int]:
        """Return portions and restarts as they were written; none for other hardware or a broken file."""
        stored = self._stored_memory(hardware)
        try:
            return {str(k): int(v) for k, v in stored["fitting"].items()}, int(stored["restarts"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return {}, 0  # they are learnt again

    def write_decided(self, hardware: HardwareConfig, decided: Mapping[str, int | bool]) -> None:
        """Write what was decided for the keys of `hardware` that are `auto`."""
        self._write_memory(hardware, decided=dict(decided))

    def read_decided(self, hardware: HardwareConfig) -> dict[str, int | bool]:
        """Return what was decided when the run began, which its continuation keeps: after a checkpoint."""
        stored = self._stored_memory(hardware).get("decided") if self.newest_checkpoint() else None
        return stored if isinstance(stored, dict) else {}

    def _write_memory(self, hardware: HardwareConfig, **values: Any) -> None:
        stored = self._stored_memory(hardware)
        write_json(self.memory, {**stored, "hardware": _key(hardware), **values})

    def _stored_memory(self, hardware: HardwareConfig) -> dict[str, Any]:
        try:
            stored = read_json(self.memory)
            return stored if stored["hardware"] == _key(hardware) else {}
        except (OSError, ValueError, KeyError, TypeError):
            return {}

    # -- checkpoints -----------------------------------------------------------------------------------

    def save_checkpoint(
        self, step: int, state: Iterable[tuple[str, Mapping[str, Tensor]]], facts: Mapping[str, Any], *,
        keep: int, write: bool,
    ) -> None:  # fmt: skip
        """Write `checkpoints/step-N` from the engine's state; only with `write` (the main process).

        All processes iterate over `state`, since each tensor is gathered from all of them. The newest `keep`
        checkpoints stay. Checkpoints of later steps are removed: training resumed before them.

        Raises:
            NoRoom: the disk is full; earlier checkpoints stay.
        """
        from safetensors.torch import save_file

        if not write:
            for _ in state:
                pass
            return
        target = self.checkpoints / f"step-{step}"
        with replacing(target) as folder:
            folder.mkdir()
            shard: dict[str, Tensor] = {}
            number = 0
            for name, tensors in state:
                shard |= {f"{key}/{name}": tensor.contiguous() for key, tensor in tensors.items()}
                if sum(t.nbytes for t in shard.values()) > _SHARD_BYTES:
                    save_file(shard, folder / f"state-{number:04}.safetensors")
                    shard, number = {}, number + 1
            save_file(shard, folder / f"state-{number:04}.safetensors")
            write_json(folder / "state.json", {"step": step, "shards": number + 1, **facts})
        steps = self.checkpoint_steps()
        later = [other for other in steps if other > step]
        for other in [*later, *steps[len(later) + keep :]]:
            shutil.rmtree(self.checkpoints / f"step-{other}")

    def load_checkpoint(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Return facts and tensors (`weight/<name>`, `exp_avg/<name>` …) of the newest whole checkpoint."""
        from safetensors import SafetensorError

        steps = self.checkpoint_steps()
        for step, before in zip(steps, [*steps, None][1:], strict=True):
            folder = self.checkpoints / f"step-{step}"
            try:
                return _read_checkpoint(folder, step)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                instead = "the training begins anew" if before is None else f"trying step-{before} before it"
                why = error.what if isinstance(error, BrokenFile) else f"{type(error).__name__}: {error}"
                log.warning("checkpoint %s cannot be read (%s): %s", folder, why, instead)
        return None

    def wait_for_checkpoint(
        self, step: int, seconds: float = 120
    ) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Return the checkpoint of a step, as soon as this machine sees it.

        Raises:
            UserError: it does not in that time.
        """
        from safetensors import SafetensorError

        folder, until = self.checkpoints / f"step-{step}", time.monotonic() + seconds
        while True:
            try:
                return _read_checkpoint(folder, step)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                if time.monotonic() > until:
                    raise UserError(
                        f"the first process continues from checkpoint {folder}, which this one cannot read "
                        f"({type(error).__name__}: {error}): root must be on a file system that all nodes see"
                    ) from error
                time.sleep(1)

    def drop_checkpoints(self) -> None:
        """Remove what a finished run no longer needs: checkpoints, models that were not chosen and the
        G-effect's starting weights."""
        for folder in (self.checkpoints, self.selection):
            shutil.rmtree(folder, ignore_errors=True)
        self.geffect_start.unlink(missing_ok=True)

    def newest_checkpoint(self) -> Path | None:
        """Return the checkpoint of the latest step, whatever the times of the files."""
        return next((self.checkpoints / f"step-{step}" for step in self.checkpoint_steps()), None)

    def drop_model(self) -> None:
        """Remove the model and its adapter."""
        for folder in (self.model, self.adapter):
            remove_whole(folder)

    def clear_leftovers(self) -> None:
        """Remove the temporary files of killed processes."""
        models = [self.model, self.adapter, self.models, *self.models.glob("step-*")]
        models += [self.selection, *self.selection.glob("step-*"), *self.selection.glob("step-*/*")]
        folders = [self.path, self.checkpoints, *models, *(p for p in self.eval.rglob("*") if p.is_dir())]
        for path in [path for folder in folders for path in leftovers(folder)]:
            log.info("removing the temporary file of a killed process: %s", path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def checkpoint_steps(self) -> list[int]:
        """Return the steps that have a checkpoint, latest first."""
        names = [path.name.removeprefix("step-") for path in self.checkpoints.glob("step-*")]
        return sorted((int(name) for name in names if name.isdigit()), reverse=True)


def _key(hardware: HardwareConfig) -> str:
    return digest(hardware.model_dump(mode="json", exclude={"name", "slurm"}))


def numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    """Keep the numbers among some values; None for null, NaN and infinity, which were not measured."""
    return {
        key: None if value is None or not math.isfinite(value) else value
        for key, value in values.items()
        if value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    }


def _read_checkpoint(folder: Path, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    from safetensors import safe_open

    facts = read_json(folder / "state.json")
    if facts["step"] != step:
        raise ValueError(f"state.json is of step {facts['step']}")
    tensors: dict[str, Tensor] = {}
    for number in range(facts["shards"]):
        with safe_open(folder / f"state-{number:04}.safetensors", framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return facts, tensors


def _drop_cut_line(file: BinaryIO) -> None:
    """Truncate a file, open to read and append, after its last newline."""
    end = size = file.seek(0, os.SEEK_END)
    while end:
        file.seek(end - 1)
        if file.read(1) == b"\n":
            break
        end -= 1
    if end < size:
        file.truncate(end)
