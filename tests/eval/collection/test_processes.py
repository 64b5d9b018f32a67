"""Several processes give what one gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from eval.collection.records import Records
from eval.evaluate import evaluate
from eval.suite import Scoring
from tests.eval.eval_fixtures import encoder, examples, model, plain
from tests.tolerance import PASS, approx, assert_close
from tests.worlds import together
from unlearn.config import HardwareConfig
from unlearn.distributed import ALONE, World
from unlearn.errors import UserError

pytestmark = pytest.mark.slow
WAYS = {"collective": True, "free": False}


def run(directory: Path, world: World) -> tuple[dict[str, float], int]:
    """Metrics and the number of forwards of this process."""
    net, calls = model(seed=3), []
    net.register_forward_pre_hook(lambda *_: calls.append(1))
    sets = {
        "forget_eval": examples("forget"),
        "retain_eval": examples("retain")[:2],
        "holdout": examples("holdout")[:3],
    }
    metrics = evaluate(
        net,
        encoder(),
        "tofu",
        sets,
        directory,
        options={"max_new_tokens": 40},
        world=world,
        max_tokens=200,
        max_rows_generation=4,
    )
    return metrics, len(calls)


def join() -> tuple[int, int]:
    dist.init_process_group("gloo")
    return dist.get_rank(), dist.get_world_size()


def process(root: str) -> None:
    """The run with every process calling the model as often as the others, and without that."""
    rank, world = join()
    for name, collective_forward in WAYS.items():
        # Each has its own folder: only the first may write, and only it may be asked what is there.
        directory = Path(root, name, f"rank{rank}")
        here = World(rank, world, collective_forward=collective_forward)
        metrics, calls = run(directory, here)
        _, again = run(directory, here)
        Path(root, f"{name}{rank}.json").write_text(json.dumps([metrics, calls, again]))
    dist.destroy_process_group()


def failing(root: str) -> None:
    """TOFU fails on the first process alone, which reads the retain model's records; then comes another."""
    rank, world = join()
    score = Scoring(
        {"tofu": {"generation": False}, "sampling": {"samples": 1, "ks": [1], "max_new_tokens": 2}},
        {"forget_eval": examples("forget")[:2]}, encoder(), Path(root) / f"rank{rank}",
        World(rank, world, torch.device("cpu")), HardwareConfig(), retain_directory=Path(root, "gold"),
    )  # fmt: skip
    messages = []
    for exclude_ids in (frozenset(), frozenset(["forget/0"])):
        try:
            score(model(), "", ["forget"], exclude_ids=exclude_ids)
        except UserError as error:
            messages.append(str(error))
    Path(root, f"{rank}.json").write_text(json.dumps(messages))
    dist.destroy_process_group()


# Two processes with four rounds, in one of which the second has nothing to do.
BINS: list[list[list[int]]] = [[[0, 1], [2], [3], [4]], [[5], [], [6], [7, 8]]]


def dealing(root: str) -> None:
    """Write the parts of each process in three passes: one in rounds, two by the free process."""
    rank, world = join()
    store, given = distributed_c10d._get_default_store(), []
    given.append(list(World(rank, world, collective_forward=True).mine(BINS)))
    for number in range(2):
        slow, mine = rank == number, []
        if not slow:
            store.wait([f"{number}/begun"])
        for part in World(rank, world).mine(BINS):
            mine.append(part)
            if slow:  # with its first part, until the other has nothing left to do
                store.set(f"{number}/begun", "")
                store.wait([f"{number}/over"])
        store.set(f"{number}/over", "")
        given.append(mine)
        dist.barrier()
    Path(root, f"{rank}.json").write_text(json.dumps(given))
    dist.destroy_process_group()


def test_synced_processes_keep_rounds_else_who_is_free_goes_on(tmp_path):
    together(2, dealing, str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert (first[0], second[0]) == tuple(map(list, BINS))
    parts = [[0, 1], [5], [2], [3], [6], [4], [7, 8]]  # all that are not empty, by rounds
    assert (first[1], second[1]) == (parts[:1], parts[1:])
    assert (second[2], first[2]) == (parts[:1], parts[1:])


def test_one_process_does_every_part_of_a_world_of_one():
    assert list(ALONE.mine(([[1], [], [0, 2]],))) == [[1], [0, 2]]
    assert list(World(collective_forward=True).mine(([[1], [], [0, 2]],))) == [[1], [], [0, 2]]


def test_what_fails_on_the_first_process_fails_on_all_and_none_waits(tmp_path):
    other = {"forget_eval": examples("forget")[2:3]}
    evaluate(model(), encoder(), "tofu", other, tmp_path / "gold", options={"generation": False})
    together(2, failing, str(tmp_path))
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert [line.split(" have no record")[0] for line in first] == [
        "benchmark tofu: 2 of 2 examples",
        "benchmark tofu: 1 of 1 examples",
    ]
    assert (tmp_path / "rank0" / "sampling" / "results.json").is_file()
    assert (tmp_path / "rank0" / "unseen" / "sampling" / "results.json").is_file()


def test_several_processes_equal_one(tmp_path):
    alone, calls_alone = run(tmp_path / "alone", ALONE)
    together(3, process, str(tmp_path))
    for name, collective_forward in WAYS.items():
        results = [json.loads((tmp_path / f"{name}{rank}.json").read_text()) for rank in range(3)]
        for metrics, _, again in results:
            assert metrics == approx(alone, terms=PASS)
            assert again == 0
        calls = [calls for _, calls, _ in results]
        if collective_forward:
            assert len(set(calls)) == 1
        else:
            assert calls_alone <= sum(calls) < 3 * calls_alone
        assert not any((tmp_path / name / f"rank{rank}").exists() for rank in range(1, 3))
        assert_same_records(tmp_path / "alone", tmp_path / name / "rank0")


def assert_same_records(alone: Path, together: Path) -> None:
    one, many = Records(alone / "tofu"), Records(together / "tofu")
    for name in (
        "forget/answer",
        "forget/paraphrased",
        "forget/perturbed",
        "retain/answer",
        "holdout/answer",
    ):
        mine, other = one.likelihood(name), many.likelihood(name)
        assert (mine.example, mine.slot.tolist()) == (other.example, other.slot.tolist())
        np.testing.assert_array_equal(mine.ended, other.ended)
        for column in ("logp", "mean", "variance"):
            left, right = getattr(mine, column), getattr(other, column)
            np.testing.assert_array_equal(left.offsets, right.offsets)
            assert_close(left.values, right.values, terms=PASS)
    assert plain(one.generation("forget/generation")) == plain(many.generation("forget/generation"))
    for name in ("forget/gradients", "holdout/gradients"):
        assert_close(one.norms(name).norm, many.norms(name).norm, dtype=torch.float32, terms=PASS, each=True)
