"""What a run leaves is as readable as the umask says, whatever library wrote it."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch

from eval.benchmark import Result
from eval.evaluate import write_result
from launch.report.page import write_report
from tests.unlearn.training import small_training as training
from unlearn.config import HardwareConfig
from unlearn.files import leftovers, replacing
from unlearn.models.export import save_pretrained
from unlearn.training import frozen_outputs


def modes(folder: Path) -> tuple[set[int], set[int]]:
    """Of all files below, and of all folders."""
    found = list(folder.rglob("*"))
    files, folders = ([path for path in found if path.is_dir() is kind] for kind in (False, True))
    return tuple({stat.S_IMODE(path.stat().st_mode) for path in kind} for kind in (files, folders))  # type: ignore[return-value]


@pytest.fixture(params=[(0o002, 0o664, 0o775), (0o027, 0o640, 0o750), (0o077, 0o600, 0o700)])
def masked(request):
    """Under a umask: the modes that files and folders are to have."""
    mask, *expected = request.param
    before = os.umask(mask)
    yield expected
    os.umask(before)


def test_all_outputs_follow_the_umask(masked, tmp_path, nano_tokenizer):
    files, folders = masked
    run = tmp_path / "runs" / "one"
    trainer = training.make_trainer(run, HardwareConfig(), minutes=1e-9)
    trainer.run()
    trainer.engine.close()
    save_pretrained(training.tiny_llama(), nano_tokenizer, run / "model")
    frozen_outputs.write(tmp_path / "runs" / "cache" / "reference" / "entry.safetensors", [torch.zeros(3)])
    write_result(
        run / "eval" / "tofu", Result({"tofu/x": 1.0}, [{"set": "forget", "id": "a"}], words={"a": "b"}), []
    )
    write_report(run)
    names = {path.name for path in tmp_path.rglob("*")}
    assert {"model.safetensors", "state-0000.safetensors", "history.jsonl", "report.html"} <= names
    assert modes(tmp_path) == ({files}, {folders})
    assert not [left for folder in tmp_path.rglob("*") if folder.is_dir() for left in leftovers(folder)]


def test_a_file_for_its_owner_alone_becomes_like_any_other(masked, tmp_path):
    with replacing(tmp_path / "folder") as folder:
        folder.mkdir()
        (folder / "secret").touch(mode=0o600)
    with replacing(tmp_path / "file") as file:
        file.touch(mode=0o600)
    assert modes(tmp_path) == ({masked[0]}, {masked[1]})
