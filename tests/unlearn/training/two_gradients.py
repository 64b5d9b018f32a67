"""Training by two gradients on the engine, and the same in plain float64, for the tests and their processes.

`run(FILE)` runs the cases in FILE (JSON) as one process of a world given by torchrun's environment variables
and lets the first process write the result next to it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.unlearn.training.small_training import tiny_llama
from unlearn.config import HardwareConfig
from unlearn.distributed import start_world, stop_world
from unlearn.training.engine import Engine
from unlearn.training.optimizers import decay_groups

BETAS, DECAY, LR, STEPS = (0.9, 0.95), 0.1, 1e-2, 3
ROWS = {"forget": 7, "retain": 6}
# Rows of each process's micro-batches: of different sizes, and as many on one process as on the other.
DEALT = {
    1: [[[0, 1, 2], [3], [4, 5, 6]]],
    2: [[[0, 1, 2], [3]], [[4, 5], [6]]],
}


def tokens(term: str, step: int) -> Tensor:
    made = torch.Generator().manual_seed(100 * step + len(term))
    return torch.randint(97, (ROWS[term], 8 if term == "forget" else 11), generator=made)


def loss(model: Any, term: str, ids: Tensor) -> Tensor:
    """These rows' share of the term's mean over the tokens of the step; the terms differ much in size."""
    logits = model(input_ids=ids).logits[:, :-1]
    total = nn.functional.cross_entropy(
        logits.flatten(0, 1).to(torch.promote_types(logits.dtype, torch.float32)),
        ids[:, 1:].flatten(),
        reduction="sum",
    )
    return total / (ROWS[term] * (ids.shape[1] - 1)) * (5.0 if term == "retain" else 1.0)


@contextmanager
def an_engine(hardware: HardwareConfig, clip: float = 0.0) -> Iterator[Engine]:
    world = start_world("cpu")
    engine = Engine(tiny_llama(), world, hardware, clip=clip, weight_decay=DECAY, betas=BETAS)
    try:
        yield engine
    finally:
        engine.close()


def backward(engine: Engine, term: str, step: int) -> None:
    ids = tokens(term, step)
    for rows in DEALT[engine.world.size][engine.world.rank]:
        here = [row for row in rows if row < ROWS[term]]
        share = loss(engine.model, term, ids[here or [0]])
        engine.backward(share if here else share * 0.0)


def difference(forget: list[Tensor], retain: list[Tensor], gram: Tensor) -> list[Tensor]:
    """g_R/‖g_R‖ − g_F/‖g_F‖."""
    f, r = gram.diagonal().sqrt().tolist()
    return [b / r - a / f for a, b in zip(forget, retain, strict=True)]


def full(engine: Engine, key: str) -> dict[str, Tensor]:
    """Return `Engine.state` of each parameter; empty except on the first process."""
    return {name: tensors[key] for name, tensors in engine.state() if tensors}


def train(hardware: HardwareConfig, *, clip: float) -> dict[str, Tensor]:
    """Some steps by the normalised difference. Grams, norms, weights, and the first step's gradient.

    The first step's gradient is read from AdamW's first moment, which is then (1 − β₁)·g.
    """
    with an_engine(hardware, clip) as engine:
        out: dict[str, Tensor] = {}
        for step in range(STEPS):
            taken = []
            for term in ROWS:
                backward(engine, term, step)
                taken.append(engine.take_gradients())
            gram = engine.gram(taken)
            engine.put_gradients(difference(taken[0], taken[1], gram))
            out |= {f"gram/{step}": gram, f"norm/{step}": torch.tensor(engine.step(LR))}
            if step == 0:
                out |= {f"first/{n}": t / (1 - BETAS[0]) for n, t in full(engine, "exp_avg").items()}
        out |= {f"weight/{n}": t for n, t in full(engine, "weight").items()}
    return out


def plain(*, clip: float) -> dict[str, Tensor]:
    """The same by autograd and AdamW of torch in float64, each batch in one piece."""
    model = tiny_llama().double()
    named = dict(model.named_parameters())
    adamw = torch.optim.AdamW(decay_groups(model, DECAY), lr=LR, betas=BETAS)
    out: dict[str, Tensor] = {}
    for step in range(STEPS):
        taken = [
            list(torch.autograd.grad(loss(model, term, tokens(term, step)), list(named.values())))
            for term in ROWS
        ]
        flat = torch.stack([torch.cat([g.flatten() for g in gradient]) for gradient in taken])
        gram = flat @ flat.T
        for p, g in zip(named.values(), difference(taken[0], taken[1], gram), strict=True):
            p.grad = g
        norm = nn.utils.clip_grad_norm_(named.values(), clip or math.inf)
        out |= {f"gram/{step}": gram, f"norm/{step}": norm}
        if step == 0:
            out |= {f"first/{n}": p.grad.clone() for n, p in named.items() if p.grad is not None}
        adamw.step()
    return out | {f"weight/{n}": p.detach() for n, p in named.items()}


def single(hardware: HardwareConfig) -> Iterator[tuple[str, Tensor]]:
    """Each term's gradient at the start, whole, by way of AdamW's first moment."""
    for term in ROWS:
        with an_engine(hardware) as engine:
            backward(engine, term, 0)
            engine.put_gradients(engine.take_gradients())
            engine.step(LR)
            yield from ((f"{term}/{n}", t / (1 - BETAS[0])) for n, t in full(engine, "exp_avg").items())


def plain_single() -> dict[str, Tensor]:
    model = tiny_llama().double()
    names, parameters = zip(*model.named_parameters(), strict=True)
    return {
        f"{term}/{name}": gradient
        for term in ROWS
        for name, gradient in zip(
            names, torch.autograd.grad(loss(model, term, tokens(term, 0)), parameters), strict=True
        )
    }


def probed(hardware: HardwareConfig, *, probe: bool) -> dict[str, Tensor]:
    """Three plain steps; with `probe`, forwards with other weights in between, which must leave no trace."""
    with an_engine(hardware, clip=0.5) as engine:
        start = engine.live_weights()
        out: dict[str, Tensor] = {"first": forward_loss(engine)}
        for step in range(STEPS):
            for term in ROWS:
                backward(engine, term, step)
                if probe:
                    with engine.with_weights([torch.zeros_like(t, dtype=torch.float64) for t in start]):
                        out["zero"] = forward_loss(engine)
            before = engine.live_weights()
            engine.step(LR)
            if probe:
                with engine.with_weights(before):
                    forward_loss(engine)
        if probe:
            with engine.with_weights(start):
                out["start"] = forward_loss(engine)
        out |= {f"{key}/{n}": t for key in ("weight", "exp_avg_sq") for n, t in full(engine, key).items()}
        out["last"] = forward_loss(engine)
    return out


def forward_loss(engine: Engine) -> Tensor:
    with torch.no_grad():
        return loss(engine.model, "forget", tokens("forget", 0)).clone()


CASES: dict[str, Callable[..., Any]] = {"train": train, "single": single, "probed": probed}


def run(file: Path) -> None:
    for name, (what, hardware, options) in json.loads(file.read_text()).items():
        found = dict(CASES[what](HardwareConfig(**hardware), **options))
        if torch.distributed.get_rank() == 0:
            save_file(
                {key: tensor.contiguous() for key, tensor in found.items()},
                file.parent / f"{name}.safetensors",
            )
        torch.distributed.barrier()
    stop_world()
