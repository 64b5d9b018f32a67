"""Files that several runs need: one run makes each, also after a kill."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest
import torch

from tests.unlearn.training import small_training as training
from unlearn.distributed import ALONE, World
from unlearn.training import frozen_outputs
from unlearn.training.shared_cache import compute_once


def wanted(file: Path, made: list[str], name: str, seconds: float) -> str:
    def make() -> str:
        time.sleep(seconds)
        file.write_text(name)
        made.append(name)
        return name

    return compute_once(file, ALONE, lambda: file.read_text() if file.is_file() else None, make)


def test_one_of_several_makes_it_and_the_others_find_it(tmp_path):
    file, made = tmp_path / "cache" / "a", list[str]()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: wanted(file, made, name, 0.3), "abcd"))
    assert len(made) == 1
    assert found == made * 4


def test_an_existing_file_is_read_without_waiting(tmp_path):
    file, made = tmp_path / "a", list[str]()
    assert wanted(file, made, "first", 0) == "first"
    assert wanted(file, made, "second", 0) == "first"
    assert made == ["first"]


def test_a_killed_holder_of_the_lock_is_succeeded_by_the_next(tmp_path):
    code = (
        "import sys, time; from filelock import FileLock; lock = FileLock(sys.argv[1]); lock.acquire(); "
        "print('held', flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", code, tmp_path / ".a.lock"]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    made: list[str] = []
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(wanted, tmp_path / "a", made, "next", 0)
        time.sleep(0.3)
        assert not waiting.done()
        holder.send_signal(signal.SIGKILL)
        assert waiting.result(timeout=20) == "next"
    holder.wait()


def test_an_error_releases_the_lock(tmp_path):
    def fail() -> str:
        raise ValueError("no model")

    try:
        compute_once(tmp_path / "a", ALONE, lambda: None, fail)
    except ValueError:
        assert wanted(tmp_path / "a", [], "again", 0) == "again"
    else:
        raise AssertionError("the error was lost")


@pytest.mark.slow
def test_a_pass_of_a_frozen_model_that_is_killed_goes_on_after_its_portions(tmp_path):
    model, alone = training.tiny_llama(), World(0, 1, torch.device("cpu"))
    sequences = training.sequences(70, seed=3)
    longest = max(len(s.ids) for s in sequences)  # so that few share a forward
    for kept in (frozen_outputs.LOGP, frozen_outputs.FrozenOutput("reference", "layer-1")):
        compute = partial(
            frozen_outputs.compute, model, sequences, alone, max_tokens=longest, collective_forward=False,
            output=kept,
        )  # fmt: skip
        whole = compute()
        parts, calls = tmp_path / kept.what, list[int]()

        def count(*_: object, calls: list[int] = calls) -> None:
            calls.append(1)
            if len(calls) == 40:
                raise KeyboardInterrupt

        hook = model.register_forward_pre_hook(count)
        with pytest.raises(KeyboardInterrupt):
            compute(parts=parts)
        [file] = parts.iterdir()
        again = compute(parts=parts)
        assert all(torch.equal(a, b) for a, b in zip(again, whole, strict=True))
        assert len(calls) - 40 < 40
        first = len(calls)
        file.write_bytes(b"cut")  # a broken portion is made again
        assert all(torch.equal(a, b) for a, b in zip(compute(parts=parts), whole, strict=True))
        assert len(calls) - first == 32
        hook.remove()
