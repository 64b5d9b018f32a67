"""What each process keeps of every trained parameter and its gradient under ZeRO, and how to make it whole.

A taken gradient is a list of tensors. Without ZeRO: one per parameter, whole, in the optimizer's order. Under
ZeRO 1 and 2: one per parameter group, this process's run of all its parameters laid end to end. Under ZeRO 3:
one per sub-group, this process's part of each of its parameters, end to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlearn.distributed import World

# Elements of each gradient turned to float64 at once for inner products.
CHUNK = 1 << 20


@dataclass(frozen=True)
class ParameterSlice:
    """This process's part of one parameter in a taken gradient: `length` elements, maybe none.

    They begin at `start` of the share of that index, and at `at` of the flattened parameter.
    """

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    share: int
    start: int
    at: int
    length: int

    def of(self, gradient: Sequence[Tensor], length: int | None = None) -> Tensor:
        """A flat view; `length` of it, where the padding after it is wanted too."""
        length = self.length if length is None else length
        return gradient[self.share].flatten().narrow(0, self.start, length)


class Shares:
    """The shares of a model that DeepSpeed has prepared at a ZeRO stage."""

    def __init__(self, world: World, stage: int, prepared: Any) -> None:
        self.world, self.stage, self._prepared = world, stage, prepared

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self._prepared.module.named_parameters() if p.requires_grad)

    def slices(self) -> list[ParameterSlice]:
        """Return the slice of each trained parameter, in their order."""
        find = {0: self._undivided, 1: self._by_group, 2: self._by_group, 3: self._by_parameter}[self.stage]
        spans = find()
        return [ParameterSlice(name, p, _shape(p), *spans[id(p)]) for name, p in self.trained()]

    def gram(self, gradients: Sequence[Sequence[Tensor]]) -> Tensor:
        """Inner products of T taken gradients over the whole model, the same everywhere: float64 [T, T]."""
        total = torch.zeros((len(gradients),) * 2, dtype=torch.float64, device=self.world.device)
        for parts in zip(*gradients, strict=True):
            total += inner(parts).to(total.device)
        return total if self.stage == 0 else self.world.sum(total)

    def gram_by_parameter(self, gradients: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """`gram` of each trained parameter alone, by name; one sum over the processes for all of them."""
        slices = self.slices()
        grams = [inner([part.of(g) for g in gradients]).to(self.world.device) for part in slices]
        total = torch.stack(grams)
        if self.stage > 0:
            total = self.world.sum(total)
        return {part.name: gram for part, gram in zip(slices, total, strict=True)}

    def whole_gradients(self, gradients: Sequence[Sequence[Tensor]]) -> Iterator[tuple[str, list[Tensor]]]:
        """Name and whole tensors, one per gradient, of one trained parameter after the other.

        On the device. Views of the gradients where this process has all of the parameter anyway.
        """
        alone = self.stage == 0 or self.world.size == 1
        for own in self.slices():
            parts = [own.of(gradient) for gradient in gradients]
            if alone:
                yield own.name, [part.to(self.world.device).view(own.shape) for part in parts]
                continue
            whole = torch.zeros(
                (len(parts), own.shape.numel()), dtype=torch.float32, device=self.world.device
            )
            for row, part in zip(whole, parts, strict=True):
                row.narrow(0, own.at, own.length).copy_(part)
            yield own.name, list(self.world.sum(whole).view(-1, *own.shape))

    def as_live(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """A gradient in the shapes and on the devices of the live weights, in fp32.

        Views at ZeRO 0 and 3; whole at ZeRO 1 and 2, as the live weights are. A collective.
        """
        if self.stage < 3:
            return [whole for _, (whole,) in self.whole_gradients([gradient])]
        both = ((own, own.parameter.ds_tensor) for own in self.slices())  # type: ignore[attr-defined]
        return [own.of(gradient, live.numel()).to(live.device) for own, live in both]

    def whole(self, shares: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Name and whole tensor, on the CPU, of shares of the live weights. A collective."""
        for (name, parameter), share in zip(self.trained(), shares, strict=True):
            if self.stage < 3:
                yield name, share.to("cpu", copy=True)
                continue
            parts = [torch.empty_like(share) for _ in range(self.world.size)]
            dist.all_gather(parts, share.contiguous())
            shape = _shape(parameter)
            yield name, torch.cat(parts)[: shape.numel()].view(shape).cpu()

    def of(self, whole: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """This process's shares of whole tensors by name, in the order of the live weights."""
        for name, _ in self.trained():
            yield whole[name].to(self.world.device) if self.stage < 3 else self.cut(whole[name])

    def cut(self, full: Tensor) -> Tensor:
        """This process's part of a tensor as ZeRO-3 cuts it: equal parts, the last one padded."""
        part = -(-full.numel() // self.world.size)
        flat = nn.functional.pad(full.flatten(), (0, part * self.world.size - full.numel()))
        return flat[self.world.rank * part : (self.world.rank + 1) * part].to(self.world.device)

    def clear(self) -> None:
        """Zero what DeepSpeed has kept of former steps' gradients; before a step's first backward.

        ZeRO 3, and any stage with CPU offload, use the same buffers in every step and write only what a
        backward reaches: a parameter without a gradient keeps its last one, and one that first has a
        gradient in a later micro-batch adds to it (DeepSpeed 0.19.8).
        """
        zero = self._prepared.optimizer
        kept: list[Tensor | None] = []
        if self.stage == 3:
            kept = [zero.grad_partitions_flat_buffer]
            if zero.offload_optimizer:
                kept += [flat.grad for flat in zero.fp32_partitioned_groups_flat]
        elif self.stage > 0 and zero.cpu_offload:
            kept = [flat.grad for flat in zero.single_partition_of_fp32_groups]
            kept += zero.accumulated_grads_in_cpu.values()
        for buffer in kept:
            if buffer is not None:
                buffer.zero_()

    def is_kept(self, share: Tensor) -> bool:
        """Whether DeepSpeed will write the next gradient over this one.

        ZeRO-3 puts the parts of a sub-group together in a new tensor, but not where there is only one.
        """
        if self.stage < 3:
            return False
        kept: Tensor = self._prepared.optimizer.grad_partitions_flat_buffer
        return kept.untyped_storage().data_ptr() == share.untyped_storage().data_ptr()

    def _undivided(self) -> dict[int, tuple[int, int, int, int]]:
        groups = self._prepared.optimizer.param_groups
        parameters = [p for group in groups for p in group["params"]]
        return {id(p): (index, 0, 0, p.numel()) for index, p in enumerate(parameters)}

    def _by_group(self) -> dict[int, tuple[int, int, int, int]]:
        zero, spans = self._prepared.optimizer, {}
        groups = zip(zero.round_robin_bit16_groups, zero.round_robin_bit16_offsets, strict=True)
        for index, (parameters, offsets) in enumerate(groups):
            size = int(zero.partition_size[index])
            mine = self.world.rank * size
            for p, offset in zip(parameters, offsets, strict=True):
                first, last = max(offset, mine), min(offset + p.numel(), mine + size)
                there = last > first
                spans[id(p)] = (
                    (index, first - mine, first - offset, last - first) if there else (index, 0, 0, 0)
                )
        return spans

    def _by_parameter(self) -> dict[int, tuple[int, int, int, int]]:
        zero, spans = self._prepared.optimizer, {}
        for _, p in self.trained():
            index, start, part = zero.grad_position[zero.get_param_id(p)]
            at = min(self.world.rank * part, p.ds_numel)  # type: ignore[attr-defined]
            spans[id(p)] = (index, start, at, min(part, p.ds_numel - at))  # type: ignore[attr-defined]
        return spans


def inner(parts: Sequence[Tensor]) -> Tensor:
    """Inner products of T tensors of one shape: float64 [T, T], where they are."""
    total = torch.zeros((len(parts),) * 2, dtype=torch.float64, device=parts[0].device)
    for chunk in zip(*(part.flatten().split(CHUNK) for part in parts), strict=True):
        rows = torch.stack([part.double() for part in chunk])
        total += rows @ rows.T
    return total


def _shape(parameter: nn.Parameter) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
