"""ZeRO partitions: the share of each trained parameter and gradient on a process, and gathering them.

A taken gradient is a list of tensors. Without ZeRO: one per parameter, whole, in the optimizer's order. Under
ZeRO 1 and 2: one per parameter group, this process's contiguous range of the group's concatenated parameters.
Under ZeRO 3: one per sub-group, this process's partitions of its parameters, concatenated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlearn.distributed import World

# Elements of each gradient that are converted to float64 at a time for inner products.
CHUNK = 1 << 20
# Elements that are sent at a time: gloo keeps a copy of a message on either side.
PIECE = 1 << 22


@dataclass(frozen=True)
class ParameterSlice:
    """This process's part of one parameter in a taken gradient: `length` elements, possibly 0.

    They begin at `start` in the tensor of index `share`, and at `at` in the flattened parameter.
    """

    name: str
    parameter: nn.Parameter
    shape: torch.Size
    share: int
    start: int
    at: int
    length: int

    def of(self, gradient: Sequence[Tensor], length: int | None = None) -> Tensor:
        """Return a flat view of the slice; with a larger `length`, also of the padding after it."""
        length = self.length if length is None else length
        return gradient[self.share].flatten().narrow(0, self.start, length)


class Shares:
    """The shares of a model under DeepSpeed at a ZeRO stage."""

    def __init__(self, world: World, stage: int, prepared: Any) -> None:
        self.world, self.stage, self._prepared = world, stage, prepared

    def trained(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((n, p) for n, p in self._prepared.module.named_parameters() if p.requires_grad)

    def slices(self) -> list[ParameterSlice]:
        """Return the slice of each trained parameter, in the order of the parameters."""
        find = {0: self._undivided, 1: self._by_group, 2: self._by_group, 3: self._by_parameter}[self.stage]
        spans = find()
        return [ParameterSlice(name, p, _shape(p), *spans[id(p)]) for name, p in self.trained()]

    def gram(self, gradients: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return inner products of T taken gradients of the whole model, float64 [T, T] on every process."""
        total = torch.zeros((len(gradients),) * 2, dtype=torch.float64, device=self.world.device)
        for parts in zip(*gradients, strict=True):
            total += inner(parts).to(total.device)
        return total if self.stage == 0 else self.world.sum(total)

    def gram_by_parameter(self, gradients: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Return `gram` of each trained parameter, by name, with one sum over the processes. A collective."""
        slices = self.slices()
        grams = [inner([part.of(g) for g in gradients]).to(self.world.device) for part in slices]
        total = torch.stack(grams)
        if self.stage > 0:
            total = self.world.sum(total)
        return {part.name: gram for part, gram in zip(slices, total, strict=True)}

    def whole_gradients(self, gradients: Sequence[Sequence[Tensor]]) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield for each trained parameter its name and the whole tensors, one for each gradient.

        The tensors are on the device: views of the gradients where this process has the whole parameter. A
        collective.
        """
        for own in self.slices():
            parts = [own.of(gradient) for gradient in gradients]
            yield own.name, self.assembled(parts, own.at, own.shape)

    def assembled(self, parts: Sequence[Tensor], at: int, shape: torch.Size) -> list[Tensor]:
        """Return whole tensors of this shape, on the device; here each has this flat part, from `at`.

        Views where this process has all of it, else in fp32. A collective.
        """
        if self.stage == 0 or self.world.size == 1:
            return [part.to(self.world.device).view(shape) for part in parts]
        whole = torch.zeros((len(parts), shape.numel()), dtype=torch.float32, device=self.world.device)
        for row, part in zip(whole, parts, strict=True):
            row.narrow(0, at, part.numel()).copy_(part)
        return list(self.world.sum(whole).view(len(parts), *shape))

    def masters(self) -> list[Tensor]:
        """Return the tensors that the optimizer updates here, by the index `share` of a slice."""
        zero = self._prepared.optimizer
        if self.stage == 0:
            return [p for group in zero.param_groups for p in group["params"]]
        if self.stage == 3:
            return list(zero.fp32_partitioned_groups_flat)
        return list(zero.single_partition_of_fp32_groups)

    def distribute(self, part: Callable[[ParameterSlice], Tensor]) -> list[Tensor]:
        """Return fp32 tensors in the shapes of taken gradients, with `part` [length] of each slice."""
        made = [torch.zeros_like(tensor, dtype=torch.float32) for tensor in self.masters()]
        for own in self.slices():
            if own.length:
                own.of(made).copy_(part(own))
        return made

    def as_live(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """Return a gradient in the shapes and on the devices of the live weights, in fp32. A collective.

        Views at ZeRO 0 and 3; whole at ZeRO 1 and 2, as the live weights are.
        """
        if self.stage < 3:
            return [whole for _, (whole,) in self.whole_gradients([gradient])]
        both = ((own, own.parameter.ds_tensor) for own in self.slices())  # type: ignore[attr-defined]
        return [own.of(gradient, live.numel()).to(live.device) for own, live in both]

    def whole(self, shares: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield name and whole tensor, on the CPU, of shares of the live weights. A collective."""
        for (name, parameter), share in zip(self.trained(), shares, strict=True):
            if self.stage < 3:
                yield name, share.to("cpu", copy=True)
                continue
            part = self._on_device(share)
            parts = [torch.empty_like(part) for _ in range(self.world.size)]
            dist.all_gather(parts, part.contiguous())
            shape = _shape(parameter)
            yield name, torch.cat(parts)[: shape.numel()].view(shape).cpu()

    def on_main(self, parameter: nn.Parameter) -> Iterator[Tensor]:
        """Yield a parameter of ZeRO 3, whole, on the main process; nothing on the others. A collective."""
        part = self._on_device(parameter.ds_tensor.detach())  # type: ignore[attr-defined]
        if not self.world.main:
            for piece in part.split(PIECE):
                dist.send(piece, dst=0)
            return
        whole = part if self.world.size == 1 else part.new_empty(part.numel() * self.world.size)
        if self.world.size > 1:
            whole[: part.numel()].copy_(part)
        for rank in range(1, self.world.size):
            for piece in whole[rank * part.numel() : (rank + 1) * part.numel()].split(PIECE):
                dist.recv(piece, src=rank)
        shape = _shape(parameter)
        yield whole[: shape.numel()].view(shape)

    def _on_device(self, part: Tensor) -> Tensor:
        """Return a partition where it can be sent; NCCL cannot send one that is offloaded to host memory."""
        if part.device.type == self.world.device.type:  # `cpu` and `cpu:0` are one, but moving copies
            return part
        return part.to(self.world.device)

    def of(self, whole: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield this process's shares of whole tensors by name, in the order of the live weights."""
        for name, _ in self.trained():
            yield whole[name].to(self.world.device) if self.stage < 3 else self.cut(whole[name])

    def cut(self, full: Tensor) -> Tensor:
        """Return this process's part of a tensor in ZeRO-3's partition: equal parts, the last one padded."""
        part = -(-full.numel() // self.world.size)
        first = min(self.world.rank * part, full.numel())
        # Of a mapped tensor no more is read.
        own = full.flatten()[first : first + part].to(self.world.device)
        return nn.functional.pad(own, (0, part - own.numel()))

    def clear(self) -> None:
        """Zero DeepSpeed's gradient buffers of former steps; to be called before a step's first backward.

        ZeRO 3, and any stage with CPU offload, use the same buffers in every step and write only gradients
        that a backward computes. A parameter without a gradient would keep that of a former step, and one
        whose first gradient is in a later micro-batch would add to it (DeepSpeed 0.19.8).
        """
        zero = self._prepared.optimizer
        buffers: list[Tensor | None] = []
        if self.stage == 3:
            buffers = [zero.grad_partitions_flat_buffer]
            if zero.offload_optimizer:
                buffers += [flat.grad for flat in zero.fp32_partitioned_groups_flat]
        elif self.stage > 0 and zero.cpu_offload:
            buffers = [flat.grad for flat in zero.single_partition_of_fp32_groups]
            buffers += zero.accumulated_grads_in_cpu.values()
            zero.averaged_gradients.clear()  # its sum in fp32, which stays after a step that was skipped
        for buffer in buffers:
            if buffer is not None:
                buffer.zero_()

    def discard(self) -> None:
        """Drop gradients, and the state of a backward that an error ended; at ZeRO 0 to 2.

        As DeepSpeed's step leaves it; DeepSpeed has no call for that (0.19.8).
        """
        if self.stage == 3:
            raise RuntimeError("an interrupted pass leaves gathered parameters at ZeRO 3")
        zero = self._prepared.optimizer
        zero.zero_grad(set_to_none=True)
        if self.stage == 0:
            return
        for bucket in zero.ipg_buckets.values():
            bucket.clear()
        zero.extra_large_param_to_reduce.clear()
        zero.params_already_reduced = [False] * len(zero.params_already_reduced)
        zero._release_ipg_buffers()
        zero.averaged_gradients.clear()
        zero.all_grad_tensors.clear()
        zero.micro_step_id = -1
        zero._backward_active_depth = zero._remaining_grad_acc_hooks = 0
        if zero.cpu_offload:
            zero._offload_accumulated_param_ids = set()
            zero.reset_cpu_buffers()

    def is_reused(self, share: Tensor) -> bool:
        """Return whether DeepSpeed will overwrite this gradient with the next one.

        ZeRO-3 concatenates the parts of a sub-group in a new tensor, unless the sub-group has only one part.
        """
        if self.stage < 3:
            return False
        buffer: Tensor = self._prepared.optimizer.grad_partitions_flat_buffer
        return buffer.untyped_storage().data_ptr() == share.untyped_storage().data_ptr()

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
                length = last - first
                spans[id(p)] = (
                    (index, first - mine, first - offset, length) if length > 0 else (index, 0, 0, 0)
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
    """Return inner products of T tensors of one shape, float64 [T, T], on their device."""
    total = torch.zeros((len(parts),) * 2, dtype=torch.float64, device=parts[0].device)
    for chunk in zip(*(part.flatten().split(CHUNK) for part in parts), strict=True):
        rows = torch.stack([part.double() for part in chunk])
        total += rows @ rows.T
    return total


def _shape(parameter: nn.Parameter) -> torch.Size:
    shape: torch.Size = getattr(parameter, "ds_shape", parameter.shape)
    return shape
