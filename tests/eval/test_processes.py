"""Two processes give what one gives."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from eval_fixtures import encoder, examples, model, plain

from eval.evaluate import evaluate
from eval.records import Records
from eval.shard import ALONE, Shard
from unlearn.config import HardwareConfig
from unlearn.engine import World
from unlearn.errors import UserError
from unlearn.variants.scoring import Scoring

pytestmark = pytest.mark.slow


def run(directory: Path, shard: Shard) -> tuple[dict[str, float], int]:
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
        shard=shard,
        max_tokens=200,
        max_rows_generation=4,
    )
    return metrics, len(calls)


def process(rank: int, world: int, synced: bool, root: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{root}/meet")
    # Each has its own folder: only the first may write, and only it may be asked what is there.
    metrics, calls = run(Path(root) / f"rank{rank}", Shard(rank, world, synced))
    _, again = run(Path(root) / f"rank{rank}", Shard(rank, world, synced))
    Path(root, f"{rank}.json").write_text(json.dumps([metrics, calls, again]))
    dist.destroy_process_group()


def failing(rank: int, world: int, root: str) -> None:
    """TOFU fails on the first process alone, which reads the retain model's records; then comes another."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world, init_method=f"file://{root}/meet")
    score = Scoring(
        {"tofu": {"generation": False}, "sampling": {"samples": 1, "ks": [1], "max_new_tokens": 2}},
        {"forget_eval": examples("forget")[:2]}, encoder(), Path(root) / f"rank{rank}",
        World(rank, world, torch.device("cpu")), HardwareConfig(), retain_directory=Path(root, "gold"),
    )  # fmt: skip
    told = []
    for without in (frozenset(), frozenset(["forget/0"])):
        try:
            score(model(), "", ["forget"], without=without)
        except UserError as error:
            told.append(str(error))
    Path(root, f"{rank}.json").write_text(json.dumps(told))
    dist.destroy_process_group()


def test_what_fails_on_the_first_process_fails_on_all_and_none_waits(tmp_path):
    other = {"forget_eval": examples("forget")[2:3]}
    evaluate(model(), encoder(), "tofu", other, tmp_path / "gold", options={"generation": False})
    mp.spawn(failing, args=(2, str(tmp_path)), nprocs=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second
    assert [line.split(" have no record")[0] for line in first] == [
        "benchmark tofu: 2 of 2 examples",
        "benchmark tofu: 1 of 1 examples",
    ]
    assert (tmp_path / "rank0" / "sampling" / "results.json").is_file()
    assert (tmp_path / "rank0" / "unseen" / "sampling" / "results.json").is_file()


@pytest.mark.parametrize(("world", "synced"), [(3, True)])
def test_several_processes_equal_one(tmp_path, world, synced):
    alone, _ = run(tmp_path / "alone", ALONE)
    mp.spawn(process, args=(world, synced, str(tmp_path)), nprocs=world)
    told = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(world)]
    for metrics, _, again in told:
        assert metrics == pytest.approx(alone, rel=1e-5)
        assert again == 0
    if synced:
        assert len({calls for _, calls, _ in told}) == 1
    assert not any((tmp_path / f"rank{rank}").exists() for rank in range(1, world))
    one, many = Records(tmp_path / "alone" / "tofu"), Records(tmp_path / "rank0" / "tofu")
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
            np.testing.assert_allclose(left.values, right.values, rtol=1e-5, atol=1e-5)
    assert plain(one.generation("forget/generation")) == plain(many.generation("forget/generation"))
    for name in ("forget/gradients", "holdout/gradients"):
        np.testing.assert_allclose(one.norms(name).norm, many.norms(name).norm, rtol=1e-4)
