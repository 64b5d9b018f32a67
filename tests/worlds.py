"""Worlds of several processes, as torchrun would start them, without a second of imports for each."""

from __future__ import annotations

import gc
import os
import socket
import time
from collections.abc import Callable
from multiprocessing import get_context
from typing import Any

import torch
import torch.multiprocessing as mp

LIMIT = 300  # seconds
# What a training or an evaluation imports; DeepSpeed and its optimizers some of it only when they are used.
PRELOADED = [
    "launch.run.execute", "eval.benchmarks.tofu", "nltk", "deepspeed.module_inject.auto_ep_layer",
    "deepspeed.runtime.zero.muon.muon_optimizer", "deepspeed.runtime.superoffload.superoffload_stage3",
    "transformers.models.llama.modeling_llama",
]  # fmt: skip


def together(processes: int, target: Callable[..., object], *arguments: Any) -> None:
    """Call a function of a module in every process of a new world; torchrun's environment variables are set.

    The processes are forked from a server that has imported the packages and done nothing else. It keeps the
    environment that it was started in, so they are given the one of now.

    Raises:
        ProcessRaisedException: the call failed in one, with its traceback; the others are ended.
        TimeoutError: they did not end.
    """
    get_context("forkserver").set_forkserver_preload(PRELOADED)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = os.environ | {
        "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port),
    }  # fmt: skip
    world = mp.start_processes(
        _enter, (environment, target, arguments), processes, join=False, start_method="forkserver"
    )
    assert world is not None
    until = time.monotonic() + LIMIT
    while not world.join(timeout=max(0.0, until - time.monotonic())):
        if time.monotonic() > until:
            for process in world.processes:
                process.kill()
            raise TimeoutError(f"{processes} processes did not end within {LIMIT} s")


def _enter(
    rank: int, environment: dict[str, str], target: Callable[..., object], arguments: tuple[Any, ...]
) -> None:
    os.environ.clear()
    os.environ.update(environment | {"RANK": str(rank), "LOCAL_RANK": str(rank)})
    torch.set_num_threads(1)
    gc.freeze()
    target(*arguments)
