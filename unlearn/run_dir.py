"""The directory of one run: its files, written so that being killed at any moment leaves it usable."""

from __future__ import annotations

import json
import logging
import os
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from unlearn.files import BrokenFile, finite, leftovers, read_json, replacing, room_for, write_json

log = logging.getLogger(__name__)
_SHARD_BYTES = 2 << 30


class RunDir:
    """Paths and files of a run (DESIGN: what a run leaves in its directory)."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.history = path / "history.jsonl"
        self.checkpoints = path / "checkpoints"
        self.model = path / "model"
        self.models = path / "models"
        self.probe = path / "geffect"
        self.probe_start = self.probe / "start.safetensors"
        self.eval = path / "eval"
        self.results = path / "results.json"
        self.log = path / "run.log"

    # -- history ---------------------------------------------------------------------------------------

    def append_history(self, row: Mapping[str, Any]) -> None:
        """One more line; flushed, so that a kill loses at most the line being written.

        Raises:
            NoRoom: the disk is full.
        """
        line = json.dumps(finite(row)) + "\n"
        with room_for(self.history), self.history.open("ab+") as file:
            _drop_cut_line(file)
            file.write(line.encode())

    def read_history(self) -> list[dict[str, Any]]:
        """All whole lines; a last line cut short by a kill is left out."""
        if not self.history.is_file():
            return []
        rows = []
        for line in self.history.read_text(encoding="utf-8").split("\n")[:-1]:
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:
                break
        return rows

    def cut_history(self, step: int) -> None:
        """Drop what was logged after `step`, and what was measured at it: both are about to come again."""

        def again(row: Mapping[str, Any]) -> bool:
            return row["step"] > step or (row["step"] == step and "loss" not in row)

        kept = [row for row in self.read_history() if not again(row)]
        with replacing(self.history) as temporary:
            temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")

    # -- checkpoints -----------------------------------------------------------------------------------

    def save_checkpoint(
        self, step: int, state: Iterable[tuple[str, Mapping[str, Tensor]]], facts: Mapping[str, Any], *,
        keep: int, write: bool,
    ) -> None:  # fmt: skip
        """Write `checkpoints/step-N` from the engine's state; only with `write` (the main process).

        The others still go through `state`, whose parts are gathered from all processes. Older ones than
        `keep` go, and those of later steps: they could not be read when this training went on before them.

        Raises:
            NoRoom: the disk is full; the checkpoints that were there stay.
        """
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
        found = self._steps()
        later = [other for other in found if other > step]
        for other in [*later, *found[len(later) + keep :]]:
            shutil.rmtree(self.checkpoints / f"step-{other}")

    def load_checkpoint(self) -> tuple[dict[str, Any], dict[str, Tensor]] | None:
        """Facts and tensors (`weight/<name>`, `exp_avg/<name>` …) of the newest checkpoint that is whole."""
        steps = self._steps()
        for step, before in zip(steps, [*steps, None][1:], strict=True):
            folder = self.checkpoints / f"step-{step}"
            try:
                return _read_checkpoint(folder, step)
            except (OSError, ValueError, KeyError, TypeError, SafetensorError) as error:
                instead = "the training begins anew" if before is None else f"trying step-{before} before it"
                why = error.what if isinstance(error, BrokenFile) else f"{type(error).__name__}: {error}"
                log.warning("checkpoint %s cannot be read (%s): %s", folder, why, instead)
        return None

    def drop_checkpoints(self) -> None:
        """The model is saved: the resumable state has served, and what a probe measured distances from."""
        shutil.rmtree(self.checkpoints, ignore_errors=True)
        self.probe_start.unlink(missing_ok=True)

    def newest_checkpoint(self) -> Path | None:
        """The folder of the checkpoint of the latest step, which need not be the youngest file."""
        return next((self.checkpoints / f"step-{step}" for step in self._steps()), None)

    def clear_leftovers(self) -> None:
        """Remove what a killed process had begun to write."""
        folders = [self.path, self.checkpoints, self.models, *(p for p in self.eval.rglob("*") if p.is_dir())]
        for path in [path for folder in folders for path in leftovers(folder)]:
            log.info("removing what was half written: %s", path)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    def _steps(self) -> list[int]:
        found = [p.name.removeprefix("step-") for p in self.checkpoints.glob("step-*")]
        return sorted((int(n) for n in found if n.isdigit()), reverse=True)


def _read_checkpoint(folder: Path, step: int) -> tuple[dict[str, Any], dict[str, Tensor]]:
    facts = read_json(folder / "state.json")
    if facts["step"] != step:
        raise ValueError(f"state.json is of step {facts['step']}")
    tensors: dict[str, Tensor] = {}
    for number in range(facts["shards"]):
        with safe_open(folder / f"state-{number:04}.safetensors", framework="pt") as file:
            tensors |= {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return facts, tensors


def _drop_cut_line(file: BinaryIO) -> None:
    """Cut a file of lines, open to read and append, after its last whole line."""
    end = size = file.seek(0, os.SEEK_END)
    while end:
        file.seek(end - 1)
        if file.read(1) == b"\n":
            break
        end -= 1
    if end < size:
        file.truncate(end)
