"""Files that several runs need: made by one, whatever becomes of it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from eval.shard import ALONE
from unlearn.cache import made_once


def wanted(file: Path, made: list[str], name: str, seconds: float) -> str:
    def make() -> str:
        time.sleep(seconds)
        file.write_text(name)
        made.append(name)
        return name

    return made_once(file, ALONE, lambda: file.read_text() if file.is_file() else None, make)


def test_one_of_several_makes_it_and_the_others_find_it(tmp_path):
    file, made = tmp_path / "cache" / "a", list[str]()
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda name: wanted(file, made, name, 0.3), "abcd"))
    assert len(made) == 1
    assert found == made * 4


def test_what_is_there_is_read_without_waiting(tmp_path):
    file, made = tmp_path / "a", list[str]()
    assert wanted(file, made, "first", 0) == "first"
    assert wanted(file, made, "second", 0) == "first"
    assert made == ["first"]


def test_a_holder_that_is_killed_leaves_its_turn_to_the_next(tmp_path):
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


def test_an_error_gives_the_turn_away(tmp_path):
    def fail() -> str:
        raise ValueError("no model")

    try:
        made_once(tmp_path / "a", ALONE, lambda: None, fail)
    except ValueError:
        assert wanted(tmp_path / "a", [], "again", 0) == "again"
    else:
        raise AssertionError("the error was lost")
