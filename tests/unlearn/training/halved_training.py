"""A small training under an allocator limit, for the tests and the processes they start.

`run(FILE)` runs the cases in FILE (JSON) as one process of a world given by torchrun's environment variables
and lets the first process write weights and portions next to it.
"""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from tests.allocator import make_hungry, room
from tests.unlearn.training.small_training import model_for, preset, trainer_on
from unlearn.config import HardwareConfig
from unlearn.distributed import start_world, stop_world
from unlearn.rules import clip_norm
from unlearn.run_dir import RunDir
from unlearn.signals import StartAgain
from unlearn.training.engine import Engine

# MiB of each row of a forward or backward: more than what kernels in bf16 keep for the shapes they have met.
ROW = 256
ROOM = 6.5 * ROW  # the rest of it is for the model
STEPS = 3


def train(
    directory: Path, hardware: HardwareConfig, *, method: str, limited: bool, hungry: float = ROW,
    first: int | None = None,
) -> tuple[dict[str, Tensor], dict[str, int]]:  # fmt: skip
    """Weights after some steps, and the portions that fitted; no weights if the training must begin again.

    `limited`: this process has room for few rows at a time. `first`: tokens of the first step, with room.
    """
    directory.mkdir(parents=True, exist_ok=True)
    world = start_world("cpu")
    chosen = preset(method)
    buckets = {"reduce_bucket_size": 3000, "stage3_prefetch_bucket_size": 3000}
    rundir, model = RunDir(directory), model_for(chosen, 0.2)
    found = rundir.load_checkpoint()
    if found is not None:
        weights = {n.removeprefix("weight/"): t for n, t in found[1].items() if n.startswith("weight/")}
        model.load_state_dict(weights, strict=False)
    engine = Engine(
        model, world, hardware, clip=clip_norm(chosen), weight_decay=chosen.weight_decay, betas=chosen.betas,
        zero=buckets,
    )  # fmt: skip
    trainer = trainer_on(engine, chosen, hardware, rundir)
    if found is not None:
        trainer.restore(*found)
    if first and not trainer.steps_made:
        trainer.steps.hardware = hardware.model_copy(update={"micro_tokens": first})
        trainer.step()
        trainer.steps.hardware = hardware
    make_hungry(engine.module, hungry)
    try:
        with room(ROOM) if limited else nullcontext():
            while trainer.steps_made < STEPS:
                trainer.step()
        weights = {name: tensors["weight"] for name, tensors in engine.state() if tensors}
    except StartAgain:
        weights = {}
    engine.close()
    return weights, engine.world.limits.fitting


def run(file: Path) -> None:
    for name, case in json.loads(file.read_text()).items():
        rank = start_world("cpu").rank
        options: dict[str, Any] = {"method": case["method"], "limited": rank in case["limited"]}
        weights, fitting = train(file.parent / name, HardwareConfig(**case["hardware"]), **options)
        if weights:
            save_file(weights, file.parent / f"{name}.safetensors")
            (file.parent / f"{name}.json").write_text(json.dumps(fitting))
    stop_world()
