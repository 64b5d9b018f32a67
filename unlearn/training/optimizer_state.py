"""The optimizer's state by parameter, for checkpoints: the same however processes share it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from unlearn.training.optimizers import MOMENTS, ChunkedAdamW, Span, whole_blocks
from unlearn.training.zero_partitions import ParameterSlice, Shares


class OptimizerState:
    """Reads and writes master weights and moments of an optimizer under DeepSpeed."""

    def __init__(self, optimizer: torch.optim.Optimizer, shares: Shares) -> None:
        self._optimizer, self._shares = optimizer, shares
        if isinstance(optimizer, ChunkedAdamW):
            masters = shares.masters()
            spans: dict[Tensor, list[Span]] = {tensor: [] for tensor in masters}
            for own in shares.slices():
                spans[masters[own.share]].append(_span(own))
            optimizer.lay_out(spans)

    def read(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield name and whole tensors of each trained parameter on the CPU; `{}` but on the main process.

        Keys are `weight`, `exp_avg`, `exp_avg_sq`, in fp32, and with 8-bit moments `exp_avg_scale` and
        `exp_avg_sq_scale` [whole blocks]: the scale of each block, 0 where it is in fp32. A collective.
        """
        masters = self._shares.masters()
        for own in self._shares.slices():
            whole = {}
            for key, part in self._parts(own, masters[own.share]).items():
                at, shape = own.at, own.shape
                if key.endswith("_scale"):
                    at = whole_blocks(_span(own)).at
                    shape = torch.Size([whole_blocks(Span(0, 0, own.shape.numel())).length])
                (gathered,) = self._shares.assembled([part], at, shape)
                if self._shares.world.main:
                    whole[key] = gathered.to("cpu", copy=True)
            yield own.name, whole

    def masters(self) -> list[Tensor]:
        """Return the master weights here, in fp32, by the index `share` of a slice; to be read."""
        masters = self._shares.masters()
        if isinstance(self._optimizer, ChunkedAdamW):
            return [self._optimizer.master(tensor) for tensor in masters]
        return [tensor.detach() for tensor in masters]

    def write(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], steps: int) -> None:
        """Set what `read` gave, after `steps` steps; moments are keyed `exp_avg/<name>`."""
        masters = self._shares.masters()
        for state in self._optimizer.state.values():
            state["step"].fill_(steps)
        for own in self._shares.slices():
            tensor, span = masters[own.share], _span(own)
            here = slice(own.at, own.at + own.length)
            if self._shares.stage > 0:  # else the model was made with them
                _part(tensor, span).copy_(weights[own.name].flatten()[here])
            parts = {key: moments[f"{key}/{own.name}"].flatten()[here] for key in MOMENTS}
            if not isinstance(self._optimizer, ChunkedAdamW):
                for key, values in parts.items():
                    _part(self._optimizer.state[tensor][key], span).copy_(values)
                continue
            blocks = whole_blocks(span)
            for key in MOMENTS:
                if (scales := moments.get(f"{key}_scale/{own.name}")) is not None:
                    parts[f"{key}_scale"] = scales[blocks.at : blocks.at + blocks.length]
            self._optimizer.write(tensor, span, parts)

    def _parts(self, own: ParameterSlice, tensor: Tensor) -> dict[str, Tensor]:
        span = _span(own)
        if isinstance(self._optimizer, ChunkedAdamW):
            weight = _part(self._optimizer.master(tensor), span)
            return {"weight": weight, **self._optimizer.read(tensor, span)}
        weight, state = _part(tensor, span), self._optimizer.state[tensor]
        # None yet, if no gradient has been finite.
        known = {
            key: _part(state[key], span) if key in state else torch.zeros_like(weight) for key in MOMENTS
        }
        return {"weight": weight, **known}


def _span(own: ParameterSlice) -> Span:
    return Span(own.start, own.at, own.length)


def _part(tensor: Tensor, span: Span) -> Tensor:
    return tensor.detach().view(-1).narrow(0, span.start, span.length)
