"""The engine's gradients of single parameters, for the tests and their processes, and plain torch.

Two losses: `deep` reaches all parameters, `shallow` none behind the first layer. `late` is their sum, with
the micro-batches of `shallow` first, so that some parameters have no gradient before a later micro-batch.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from tests.unlearn.training.small_training import tiny_llama
from tests.unlearn.training.two_gradients import (
    BETAS,
    DEALT,
    DECAY,
    LR,
    ROWS,
    forward_loss,
    full,
    loss,
    tokens,
)
from unlearn.config import HardwareConfig
from unlearn.distributed import start_world, stop_world
from unlearn.training.engine import Engine

PARTS = {"deep": ["deep"], "shallow": ["shallow"], "late": ["shallow", "deep"]}
# Down the gradient of `deep`: from ln 97 = 4.57 nats to about 3.5.
MOVE = 1.0


def model(trained: str) -> nn.Module:
    """With only those parameters trained whose names hold the pattern."""
    made = tiny_llama()
    for name, parameter in made.named_parameters():
        parameter.requires_grad_(bool(re.search(trained, name)))
    return made


def part_loss(network: Any, part: str, rows: list[int]) -> Tensor:
    """Return these rows' share of the loss."""
    ids = tokens("forget", 0)
    if part == "deep":
        return loss(network, "forget", ids[rows])
    hidden = network(input_ids=ids[rows], output_hidden_states=True, use_cache=False).hidden_states[1]
    # The factor makes its gradient about as large as that of the other.
    return hidden.to(torch.promote_types(hidden.dtype, torch.float32)).pow(2).sum() * (800 / ids.numel() / 32)


@contextmanager
def an_engine(hardware: HardwareConfig, trained: str, zero: Mapping[str, Any]) -> Iterator[Engine]:
    world = start_world("cpu")
    engine = Engine(
        model(trained), world, hardware, clip=0.0, weight_decay=DECAY, betas=BETAS, zero=zero
    )  # fmt: skip
    try:
        yield engine
    finally:
        engine.close()


def backward(engine: Engine, kind: str) -> None:
    for part in PARTS[kind]:
        for rows in DEALT[engine.world.size][engine.world.rank]:
            engine.backward(part_loss(engine.model, part, rows))


def looked(engine: Engine) -> dict[str, Tensor]:
    """Return every view of taken gradients, and the loss after a step down one of them."""
    taken, copies = [], []
    for kind in PARTS:
        backward(engine, kind)
        taken.append(engine.take_gradients())
        copies += [share.clone() for share in taken[-1]]
    out = {"gram": engine.gram(taken)}
    out |= {f"by/{name}": gram for name, gram in engine.gram_by_parameter(taken).items()}
    names = [name for name, p in engine.module.named_parameters() if p.requires_grad]
    for expected, (name, tensors) in zip(names, engine.whole_gradients(taken), strict=True):
        assert name == expected
        out |= {f"{kind}/{name}": tensor.clone() for kind, tensor in zip(PARTS, tensors, strict=True)}
    start, down = engine.live_weights(), engine.as_live(taken[0])
    assert all(d.dtype == torch.float32 and d.shape == s.shape for d, s in zip(down, start, strict=True))
    with engine.with_weights([s.float() - MOVE * d for s, d in zip(start, down, strict=True)]):
        out["moved"] = forward_loss(engine)
    out["start"] = forward_loss(engine)
    shares = [share for gradient in taken for share in gradient]
    assert all(torch.equal(a, b) for a, b in zip(shares, copies, strict=True)), "what was taken has changed"
    return out


def measured(
    hardware: Mapping[str, Any], *, trained: str = "", zero: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """After a step of each kind without a change of the weights: AdamW's first moment, and `looked`."""
    with an_engine(HardwareConfig(**hardware), trained, zero or {}) as engine:
        for kind in PARTS:
            backward(engine, kind)
            engine.step(lr=0.0)
        moments = {f"moment/{name}": t for name, t in full(engine, "exp_avg").items()}
        return looked(engine) | moments


def trained_on(
    hardware: Mapping[str, Any], *, look: bool, zero: Mapping[str, Any] | None = None
) -> dict[str, Tensor]:
    """Weights and moments after some steps; with `look`, all was looked at in between."""
    with an_engine(HardwareConfig(**hardware), "", zero or {}) as engine:
        for kind in ("deep", "shallow", "late", "deep"):
            backward(engine, kind)
            engine.step(LR)
            if look:
                looked(engine)
        return {
            f"{k}/{n}": t for k in ("weight", "exp_avg", "exp_avg_sq") for n, t in full(engine, k).items()
        }


def plain(trained: str) -> dict[str, Tensor]:
    """Gradients by autograd in float64."""
    network = model(trained).double()
    named = {name: p for name, p in network.named_parameters() if p.requires_grad}
    rows = list(range(ROWS["forget"]))
    out: dict[str, Tensor] = {}
    for kind, parts in PARTS.items():
        value = torch.stack([part_loss(network, part, rows) for part in parts]).sum()
        found = torch.autograd.grad(value, list(named.values()), materialize_grads=True, allow_unused=True)
        out |= {f"{kind}/{name}": gradient for name, gradient in zip(named, found, strict=True)}
    return out


def plain_moved(trained: str, down: Mapping[str, Tensor], dtype: torch.dtype) -> float:
    """The loss of a model in this precision whose weights have gone down these gradients."""
    network = model(trained).to(dtype)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name in down:
                parameter.copy_(parameter.float() - MOVE * down[name])
        return float(loss(network, "forget", tokens("forget", 0)))


CASES: dict[str, Callable[..., dict[str, Tensor]]] = {"measured": measured, "trained_on": trained_on}


def run(directory: Path, cases: Mapping[str, tuple[str, Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """As one of several processes: the cases, one after the other; the first process writes what came out."""
    for name, (what, hardware, options) in cases.items():
        found = CASES[what](hardware, **options)
        if torch.distributed.get_rank() == 0:
            save_file({k: t.contiguous() for k, t in found.items()}, directory / f"{name}.safetensors")
        torch.distributed.barrier()
    stop_world()
