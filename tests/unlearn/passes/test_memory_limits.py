"""Passes without training that run out of memory: halved, done again, with the same numbers."""

from __future__ import annotations

import json
import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.multiprocessing import ProcessExitedException

from eval.collection.live_model import Live
from eval.suite import Scoring
from tests.allocator import make_hungry, room
from tests.eval.eval_fixtures import encoder, examples, model
from tests.tolerance import PASS, assert_close
from tests.unlearn.training.small_training import sequences, tiny_llama
from tests.worlds import together
from unlearn.config import HardwareConfig
from unlearn.distributed import World, start_world
from unlearn.passes.generate import generate
from unlearn.passes.gumbel_sampling import sampling
from unlearn.passes.memory_limits import MemoryLimits
from unlearn.passes.out_of_memory import DoesNotFit, in_portions, is_out_of_memory
from unlearn.probes.geffect.example_effects import ExampleEffects, Points
from unlearn.probes.geffect.parameter_groups import parameter_groups
from unlearn.signals import StartAgain
from unlearn.training import frozen_outputs
from unlearn.training.engine import Engine

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the limit is the system's")

ROW = 64  # MiB of each row of a forward
ROOM = 6.5 * ROW  # the rest of it is for the model
QUESTIONS = [(f"Who wrote book {i}?", f"The author of book {i} is nobody.") for i in range(12)]


def test_only_a_failed_allocation_counts():
    with room(64), pytest.raises(RuntimeError) as failed:
        torch.empty(1 << 30, dtype=torch.uint8)
    assert is_out_of_memory(failed.value)
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))


def live(folder: Path, *, hungry: bool, world: World | None = None, tokens: int = 4096) -> Live:
    net = model()
    if hungry:
        make_hungry(net, ROW)
    return Live(net, encoder(), folder, world or World(), max_tokens=tokens, max_rows=12)


def test_likelihoods_and_gradient_norms_are_computed_in_halves(tmp_path, caplog):
    some = encoder().pairs(QUESTIONS)
    small, plain = live(tmp_path, hungry=True), live(tmp_path, hungry=False)
    with room(ROOM), caplog.at_level(logging.WARNING):
        norms = small.norms(some)
        assert small.world.limits.fitting.keys() == {"gradient_tokens"}  # a forward alone may fit
        columns = small.read(some)
    portions = small.world.limits.fitting
    for key, portion in portions.items():
        assert [text for text in caplog.messages if f"hardware.{key}={portion}" in text]
    # The same portions from the start, and with them the same bits.
    plain.max_tokens, plain.max_gradient_tokens = portions["eval_tokens"], portions["gradient_tokens"]
    assert np.array_equal(norms, plain.norms(some))
    for name, values in plain.read(some).items():
        assert np.array_equal(columns[name].values, values.values), name


@pytest.mark.parametrize("temperature", [0.0, pytest.param(1.0, marks=pytest.mark.slow)])
def test_texts_are_generated_in_halves(temperature):
    def texts(net: torch.nn.Module, world: World, rows: int) -> list[list[int]]:
        keys = [str(i).encode() for i in range(12)]
        return generate(
            net, encoder().prompts([question for question, _ in QUESTIONS]), max_new_tokens=40, end_ids=[1],
            pad_id=0, max_rows=rows, world=world, device=torch.device("cpu"),
            perturb=sampling(keys, temperature) if temperature else None,
        )  # fmt: skip

    hungry, world = model().eval(), World()
    make_hungry(hungry, ROW)
    with room(ROOM):
        halved = texts(hungry, world, 12)
    assert world.limits.fitting["generate_rows"] in (3, 6)
    assert halved == texts(model().eval(), World(), 1)


def test_a_frozen_models_outputs_are_computed_in_halves(tmp_path):
    some, world, hungry = sequences(300, 5), World(), tiny_llama(1, 0.3)
    make_hungry(hungry, ROW)
    options: dict[str, Any] = {"max_tokens": 200, "collective_forward": False}
    with room(ROOM):  # in the second portion of a pass, as rows get shorter
        halved = frozen_outputs.compute(hungry, some, world, parts=tmp_path, **options)
    assert world.limits.fitting["eval_tokens"] < 200
    whole = frozen_outputs.compute(tiny_llama(1, 0.3), some, World(), **options)
    for mine, theirs in zip(halved, whole, strict=True):
        assert_close(mine, theirs, terms=PASS, scale=float(theirs.abs().max()))


def test_where_a_pass_has_collectives_the_run_begins_again_with_what_was_kept():
    kept: list[tuple[dict[str, int], int]] = []
    world = World(limits=MemoryLimits(save=lambda *limits: kept.append(limits)))

    def compute(bins: list[list[list[int]]]) -> None:
        torch.empty(len(bins[0][0]) << 30, dtype=torch.uint8)

    with room(2500), pytest.raises(StartAgain, match=r"hardware\.eval_tokens=20"):
        in_portions(world, "eval_tokens", 64, [10] * 4, compute, collective=True)
    assert kept == [({"eval_tokens": 20}, 1)]
    with room(2500):
        in_portions(world, "eval_tokens", 64, [10] * 4, compute, collective=True)


def process(root: str) -> None:
    dist.init_process_group("gloo")
    world = World(dist.get_rank(), dist.get_world_size())
    mine = live(Path(root, str(world.rank)), hungry=True, world=world)
    prompts = encoder().prompts([question for question, _ in QUESTIONS])
    with room(2.5 * ROW):  # on both: a free process takes the next part, so one may have all of them
        norms = mine.norms(encoder().pairs(QUESTIONS))
        texts = mine.answers(prompts, max_new_tokens=20)
    known = [norms.tolist(), texts, mine.world.limits.fitting]
    Path(root, f"{world.rank}.json").write_text(json.dumps(known))
    dist.destroy_process_group()


@pytest.mark.slow
def test_two_processes_halve_alike(tmp_path):
    together(2, process, str(tmp_path))
    (norms, texts, fitting), other = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert [norms, texts, fitting] == other
    assert fitting.keys() == {"gradient_tokens", "generate_rows"}
    alone = live(tmp_path, hungry=False)
    assert_close(np.array(norms), alone.norms(encoder().pairs(QUESTIONS)), terms=PASS, dtype=torch.float32)
    prompts = encoder().prompts([question for question, _ in QUESTIONS])
    assert texts == alone.answers(prompts, max_new_tokens=20)


def sharded(root: str) -> None:
    """Evaluate two benchmarks at ZeRO 3, where the second process has no room for one sequence."""
    world = start_world("cpu")
    hardware = HardwareConfig(processes=2, zero=3, generate_rows=1)
    engine = Engine(model(), world, hardware, clip=0.0, weight_decay=0.0, betas=(0.9, 0.99))
    score = Scoring(
        {"sampling": {"samples": 1, "ks": [1]}, "prompts": {}}, {"forget_eval": examples("forget")[:2]},
        encoder(), Path(root), world, hardware,
    )  # fmt: skip
    if not world.main:
        make_hungry(engine.module, ROW)
    try:
        with room(ROW / 2) if not world.main else nullcontext():
            score(engine.module, "", ["forget"], collective_forward=True)
    except DoesNotFit as error:
        Path(root, "message").write_text(str(error))
        sys.exit(3)


@pytest.mark.slow
def test_where_a_pass_has_collectives_a_process_without_room_goes_on_with_nothing_else(tmp_path):
    with pytest.raises(ProcessExitedException, match="process 1 terminated with exit code 3"):
        together(2, sharded, str(tmp_path))
    assert "one forward of a sequence does not fit" in (tmp_path / "message").read_text()
    assert not list(tmp_path.rglob("results.json"))


def test_a_probes_effects_on_examples_are_computed_in_halves():
    some = sequences(20, 6)
    points = Points("forget", range(len(some)), [str(i) for i in range(len(some))], some)

    def effects(*, hungry: bool, tokens: int) -> tuple[list[Any], dict[str, int]]:
        world, net = World(), tiny_llama(1, 0.3).eval()
        engine = Engine(net, world, HardwareConfig(), clip=0.0, weight_decay=0.0, betas=(0.9, 0.99))
        engine.backward(engine.model(input_ids=torch.arange(12)[None]).logits.log_softmax(-1)[..., 3].sum())
        direction = engine.take_gradients()
        if hungry:
            make_hungry(engine.module, ROW)
        probed = ExampleEffects(engine, parameter_groups(engine.module, (1 / 3, 2 / 3)), tokens)
        with room(ROOM) if hungry else nullcontext():
            products = probed.by_example(points, [direction])
            found = [probed.risks(points), *(each[group] for each in products for group in sorted(each))]
        engine.close()
        return found, world.limits.fitting

    start_world("cpu")
    halved, fitting = effects(hungry=True, tokens=512)
    assert fitting["micro_tokens"] < 512
    plain, _ = effects(hungry=False, tokens=fitting["micro_tokens"])
    for mine, theirs in zip(halved, plain, strict=True):
        assert_close(mine, theirs, terms=PASS, scale=float(np.abs(theirs).max()))
