"""Outputs of frozen models for the training data, computed once per data set and cached on disk.

No second model is in memory during training. The cache holds log-probabilities, hidden states of a layer, or
the states that enter the output head, from which a frozen copy of the head computes the model's logits by one
matrix product. A run computes the outputs before its first step; later runs on the same weights and data read
them.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearn.config import Mask
from unlearn.data.batching import collate, count, deal, positions
from unlearn.data.tokenization import TokenSequence
from unlearn.distributed import World
from unlearn.files import replacing
from unlearn.passes.forward import forward, states
from unlearn.passes.head import Head, unwrap
from unlearn.passes.module_modes import evaluating
from unlearn.passes.out_of_memory import Bins, in_portions

log = logging.getLogger(__name__)

_FORWARDS = 32  # of each process in a portion: the most that a killed pass loses


@dataclass(frozen=True)
class FrozenOutput:
    """An output of a frozen `model` ("reference" or "reinforced") at the positions of a mask.

    `what` is "logp", "head" (the states that enter the output head) or "layer-<n>".
    """

    model: str
    what: str
    mask: Mask = "answer"


LOGP = FrozenOutput("reference", "logp")


def cache_file(
    root: Path, model: str, dtype: str, sequences: Sequence[TokenSequence], output: FrozenOutput = LOGP
) -> Path:
    """Return the cache file of an output for these token sequences; `model` is the key of its weights."""
    digest = hashlib.sha256(f"{model} {dtype}".encode())
    if output.what != "logp":
        digest.update(f"{output.what} {output.mask}".encode())
    for sequence in sequences:
        digest.update(np.array([len(sequence.ids), sequence.answer_start]).tobytes())
        digest.update(sequence.ids.tobytes())
    return root / "cache" / "reference" / f"{digest.hexdigest()[:24]}.safetensors"


def head_file(root: Path, model: str, dtype: str) -> Path:
    """Return the cache file of a model's output head."""
    name = hashlib.sha256(f"{model} {dtype} head".encode()).hexdigest()[:24]
    return root / "cache" / "reference" / f"{name}-head.safetensors"


def read(file: Path, sequences: Sequence[TokenSequence], mask: Mask = "answer") -> list[Tensor] | None:
    """Read one tensor [n] or [n, D] per sequence; None where the entry is missing or broken."""
    sizes = _sizes(sequences, mask)
    entry = _whole(file, "values")
    if entry is not None and len(entry["values"]) != sum(sizes):
        log.warning("%s is broken (%d rows for %d): made again", file, len(entry["values"]), sum(sizes))
        return None
    return None if entry is None else list(entry["values"].split(sizes))


def compute(
    model: nn.Module, sequences: Sequence[TokenSequence], world: World, *, max_tokens: int,
    collective_forward: bool, output: FrozenOutput = LOGP, pad_id: int = 0, parts: Path | None = None,
) -> list[Tensor]:  # fmt: skip
    """Compute one tensor [n] or [n, D] per sequence, on the CPU, by a pass shared by all processes.

    parts: a folder for the portions of a long pass, all of this model and these sequences. An interrupted
        pass continues after these portions; the caller removes the folder after writing the whole.
    """
    world = world.with_collective_forward(collective_forward)
    sizes = _sizes(sequences, output.mask)
    values: dict[int, np.ndarray] = {}
    widest = max(len(s.ids) for s in sequences)
    lengths = [widest if output.mask == "all" else len(s.ids) for s in sequences]
    dealt = deal(lengths, world.size, max_tokens=max_tokens)
    rounds = len(dealt[0])

    def values_of(rows: list[int], bins: Bins) -> list[tuple[int, np.ndarray]]:
        mine: list[tuple[int, np.ndarray]] = []
        for part in bins[world.rank]:
            if part or collective_forward:
                own = [rows[j] for j in part]
                mine += _values(model, sequences, own, sizes, output, widest, pad_id, world)
        return mine

    with evaluating(model):
        for start in range(0, rounds, _FORWARDS):
            rows = sorted(i for own in dealt for batch in own[start : start + _FORWARDS] for i in batch)
            cuts = np.cumsum([sizes[i] for i in rows])
            file = None
            if parts is not None and rounds > _FORWARDS:
                file = parts / f"{world.size}-{max_tokens}-{start}.safetensors"
            known = world.on_main(partial(_portion, file, int(cuts[-1])))
            if known is None:
                mine = in_portions(
                    world, "eval_tokens", max_tokens, [lengths[i] for i in rows], partial(values_of, rows),
                    collective=collective_forward,
                )  # fmt: skip
                known = np.concatenate(
                    [part for _, part in sorted(world.gather(mine), key=lambda pair: pair[0])]
                )
                if file is not None and world.main:
                    write(file, [torch.from_numpy(known)])
            values |= zip(rows, np.split(known, cuts[:-1]), strict=True)
    return [torch.from_numpy(values[i]) for i in range(len(sequences))]


def direction_of(refused: Sequence[Tensor], own: Sequence[Tensor]) -> Tensor:
    """Return the mean of the last states of refused prompts minus that of others, [D] fp32.

    refused, own: hidden states at the positions of prompts, one tensor [n, D] for each.
    """
    first, second = (torch.stack([each[-1].double() for each in states]).mean(0) for states in (refused, own))
    return (first - second).float()


def write(file: Path, values: Sequence[Tensor], dtype: torch.dtype = torch.float32) -> None:
    with replacing(file) as temporary:
        save_file({"values": torch.cat(list(values)).to(dtype)}, temporary)


def head_of(model: nn.Module) -> Head:
    """Copy a model's output head to the CPU, frozen; the model must have whole weights."""
    head = unwrap(model).get_output_embeddings()
    bias = getattr(head, "bias", None)
    copy = head.weight.detach().to("cpu", copy=True)
    return Head(copy, None if bias is None else bias.detach().to("cpu", copy=True))


def write_head(file: Path, head: Head) -> None:
    with replacing(file) as temporary:
        save_file({"weight": head.weight} | ({} if head.bias is None else {"bias": head.bias}), temporary)


def read_head(file: Path, device: torch.device, dtype: torch.dtype) -> Head | None:
    """Read a cached head in compute precision; None where the entry is missing or broken."""
    entry = _whole(file, "weight")
    return None if entry is None else Head(entry["weight"], entry.get("bias")).to(device, dtype)


def _whole(file: Path, name: str) -> dict[str, Tensor] | None:
    """Read the tensors of an entry, which must have this name; None where it is missing or broken."""
    try:
        tensors = load_file(file)
        tensors[name]
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError, KeyError) as error:
        log.warning("%s is broken (%s: %s): made again", file, type(error).__name__, error)
        return None
    return tensors


def _sizes(sequences: Sequence[TokenSequence], mask: Mask) -> list[int]:
    widest = max(len(s.ids) for s in sequences)
    return [count(s, mask=mask, skip=0, all_width=widest) for s in sequences]


def _values(
    model: nn.Module, sequences: Sequence[TokenSequence], rows: list[int], sizes: Sequence[int],
    output: FrozenOutput, widest: int, pad_id: int, world: World,
) -> list[tuple[int, np.ndarray]]:  # fmt: skip
    """Return the output for the sequences of these numbers; without numbers, only call the model."""
    with torch.no_grad():
        values = _pass(model, [sequences[i] for i in rows] or sequences[:1], output, widest, pad_id, world)
    if not rows:
        return []
    # NumPy has no bfloat16.
    plain = (values.float() if values.dtype == torch.bfloat16 else values).cpu().numpy()
    return list(zip(rows, np.split(plain, np.cumsum([sizes[i] for i in rows])[:-1]), strict=True))


def _portion(file: Path | None, size: int) -> np.ndarray | None:
    """Read the values of a portion; None where it is missing or broken."""
    entry = None if file is None else _whole(file, "values")
    if entry is None or len(entry["values"]) != size:
        return None
    return np.asarray(entry["values"].numpy())


def _pass(
    model: nn.Module,
    sequences: Sequence[TokenSequence],
    output: FrozenOutput,
    widest: int,
    pad_id: int,
    world: World,
) -> Tensor:
    if output.what == "logp":
        return forward(model, collate(sequences).to(world.device)).logp
    width = {"attention": max(len(s.ids) for s in sequences), "all": widest}.get(output.mask)
    batch = collate(sequences, pad_id, width=width, attention_mask=output.mask == "all").to(world.device)
    where = positions(sequences, batch.input_ids.shape[1], mask=output.mask, all_width=widest)
    layer = None if output.what == "head" else int(output.what.removeprefix("layer-"))
    return states(model, batch, where.index.to(world.device), layer)
