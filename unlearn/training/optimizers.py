"""AdamW, and what its state is stored in: fp32, or 8 bits a moment; whole masters, or 16-bit remainders.

`make_optimizer` is the only place where a training's optimizer is made. Moments in 8 bits are those of
block-wise quantisation (arXiv 2110.02861) as torchao stores them: a code for each number and a scale, the
largest magnitude, for each block of 256. The second moment is stored as its root: squares of gradients of
very different sizes in a block would leave the range of the codes.

A bf16 weight and a signed 16-bit remainder together are an fp32 master weight, bit for bit.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from unlearn.config import HardwareConfig
from unlearn.environment import unhide
from unlearn.models.stored import fill_parameter
from unlearn.training.deepspeed_config import keeps_remainders

MOMENTS = ("exp_avg", "exp_avg_sq")
BLOCK = 256
"""Numbers that share a scale; blocks begin at multiples of it in a parameter, whatever the processes."""
SMALL = 4096
"""Parts of a parameter with at most so many numbers keep fp32 moments: norms, biases, what a split leaves."""
CHUNK = 1 << 24
"""Numbers that are updated at a time, in fp32; a multiple of `BLOCK`."""


@dataclass(frozen=True)
class Span:
    """`length` numbers of a parameter, from `at`; they begin at `start` in the tensor that holds them."""

    start: int
    at: int
    length: int


def make_optimizer(
    model: nn.Module, hardware: HardwareConfig, *, weight_decay: float, betas: tuple[float, float],
    device: torch.device,
) -> torch.optim.Optimizer:  # fmt: skip
    """Return the AdamW of `hardware`; where it keeps remainders, the model's parameters become bf16.

    Those that `stored.defer` set aside are then filled on `device`, one after the other: no more than one
    parameter is in fp32 at a time.
    """
    groups = decay_groups(model, weight_decay)
    remainders = keeps_remainders(hardware)
    if hardware.optimizer == "adamw" and not remainders:
        return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
    if remainders:
        for parameter in model.parameters():
            if not parameter.requires_grad and parameter.is_floating_point():
                fill_parameter(parameter, device, torch.bfloat16)
                parameter.data = parameter.data.bfloat16()
    return ChunkedAdamW(
        groups, betas=betas, eight_bit=hardware.optimizer == "adamw-8bit", halve=remainders, device=device
    )  # fmt: skip


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return parameter groups: matrices decay, biases and norm weights do not (as in HF's Trainer)."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in trained if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in trained if p.ndim < 2], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


@dataclass
class _Chunk:
    """Moments of `length` numbers from `start` in a tensor: codes and scales where quantised, else fp32."""

    start: int
    at: int
    length: int
    values: dict[str, Any] = field(default_factory=dict)

    def read(self) -> list[Tensor]:
        """Return both moments, fp32 [length]; those in fp32 are the stored ones."""
        first, second = (self.values[key] for key in MOMENTS)
        if type(first) is Tensor:
            return [first, second]
        return [first.dequantize(), second.dequantize().square_()]

    def write(self, moments: Sequence[Tensor], scales: Sequence[Tensor | None] = (None, None)) -> None:
        """Store both moments, fp32 [length]; with scales [length / 256] instead of those that follow."""
        for key, value, scale in zip(MOMENTS, moments, scales, strict=True):
            stored = self.values[key]
            if type(stored) is Tensor:
                if stored is not value:
                    stored.copy_(value)
                continue
            _quantise(value.sqrt() if key == "exp_avg_sq" else value, stored, scale)


class ChunkedAdamW(torch.optim.Optimizer):
    """AdamW that updates chunks of `CHUNK` numbers in fp32, and stores less of them in between.

    `halve` turns the fp32 parameters that it gets into bf16 parameters and remainders, on `device` those that
    `stored.defer` set aside.
    """

    def __init__(
        self, groups: Sequence[dict[str, Any]], *, betas: tuple[float, float], eight_bit: bool, halve: bool,
        device: torch.device | None = None,
    ) -> None:  # fmt: skip
        super().__init__(groups, {"lr": 0.0, "betas": betas, "eps": 1e-8})
        self._eight_bit = eight_bit
        self._spans: dict[Tensor, list[Span]] = {}
        self._chunks: dict[Tensor, list[_Chunk]] = {}
        self._remainders: dict[Tensor, Tensor] = {}
        for parameter in (p for group in self.param_groups for p in group["params"] if halve):
            fill_parameter(parameter, device or parameter.device, torch.float32)
            whole = parameter.data
            parameter.data = torch.empty_like(whole, dtype=torch.bfloat16)
            self._remainders[parameter] = torch.empty(whole.numel(), dtype=torch.int16, device=whole.device)
            _split(whole.float().view(-1), parameter.data.view(-1), self._remainders[parameter])

    def lay_out(self, spans: Mapping[Tensor, Sequence[Span]]) -> None:
        """Say which parts of parameters each tensor holds, before the first step; by default one, whole."""
        self._spans = {tensor: list(each) for tensor, each in spans.items()}

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every tensor that has a gradient."""
        for group in self.param_groups:
            for tensor in group["params"]:
                if tensor.grad is not None:
                    self._update(tensor, group)

    def master(self, parameter: Tensor) -> Tensor:
        """Return the fp32 weights of a parameter or tensor, in its shape."""
        remainder = self._remainder(parameter)
        if remainder is None:
            return parameter.detach()
        return _join(parameter.detach().view(-1), remainder).view(parameter.shape)

    def read(self, tensor: Tensor, span: Span) -> dict[str, Tensor]:
        """Return moments fp32 [length] of a span, and `…_scale` [whole blocks] with 8 bits; 0 where fp32."""
        made = {key: torch.zeros(span.length, device=tensor.device) for key in MOMENTS}
        blocks = whole_blocks(span)
        if self._eight_bit:
            made |= {f"{key}_scale": torch.zeros(blocks.length, device=tensor.device) for key in MOMENTS}
        for chunk in self._of(tensor, span):
            for key, moment in zip(MOMENTS, chunk.read(), strict=True):
                made[key].narrow(0, chunk.start - span.start, chunk.length).copy_(moment)
                if type(stored := chunk.values[key]) is not Tensor:
                    first = chunk.at // BLOCK - blocks.at
                    made[f"{key}_scale"].narrow(0, first, chunk.length // BLOCK).copy_(stored.scale)
        return made

    def write(self, tensor: Tensor, span: Span, values: Mapping[str, Tensor]) -> None:
        """Store moments of a span, and scales if there are any: then the codes are those that were read."""
        blocks = whole_blocks(span)
        for chunk in self._of(tensor, span):
            moments = [values[key].narrow(0, chunk.start - span.start, chunk.length) for key in MOMENTS]
            scales: list[Tensor | None] = [None, None]
            if f"{MOMENTS[0]}_scale" in values and type(chunk.values[MOMENTS[0]]) is not Tensor:
                part = (chunk.at // BLOCK - blocks.at, chunk.length // BLOCK)
                scales = [values[f"{key}_scale"].narrow(0, *part).to(tensor.device) for key in MOMENTS]
            chunk.write([moment.to(tensor.device) for moment in moments], scales)

    def _update(self, tensor: Tensor, group: Mapping[str, Any]) -> None:
        state = self.state[tensor]
        count = state.setdefault("step", torch.zeros((), device=tensor.device))
        weights, gradient = tensor.detach().view(-1), tensor.grad.reshape(-1)  # type: ignore[union-attr]
        remainder = self._remainder(tensor)
        beta1, beta2 = group["betas"]
        for chunk in self._chunks_of(tensor):
            here = slice(chunk.start, chunk.start + chunk.length)
            master = weights[here] if remainder is None else _join(weights[here], remainder[here])
            first, second = chunk.read()
            adamw(
                [master], [gradient[here].float()], [first], [second], [], [count.clone()], fused=True,
                amsgrad=False, beta1=beta1, beta2=beta2, lr=group["lr"], weight_decay=group["weight_decay"],
                eps=group["eps"], maximize=False,
            )  # fmt: skip
            chunk.write([first, second])
            if remainder is not None:
                _split(master, weights[here], remainder[here])
        count += 1

    def _remainder(self, parameter: Tensor) -> Tensor | None:
        """Return a parameter's remainder, on its device: DeepSpeed moves the model after this was made."""
        remainder = self._remainders.get(parameter)
        if remainder is not None and remainder.device != parameter.device:
            remainder = self._remainders[parameter] = remainder.to(parameter.device)
        return remainder

    def _of(self, tensor: Tensor, span: Span) -> Iterator[_Chunk]:
        ends = span.start + span.length
        return (chunk for chunk in self._chunks_of(tensor) if span.start <= chunk.start < ends)

    def _chunks_of(self, tensor: Tensor) -> list[_Chunk]:
        if tensor not in self._chunks:
            spans = self._spans.get(tensor, [Span(0, 0, tensor.numel())])
            self._chunks[tensor] = [self._chunk(tensor, *each) for span in spans for each in self._cut(span)]
        return self._chunks[tensor]

    def _cut(self, span: Span) -> Iterator[tuple[Span, bool]]:
        """Cut a span into chunks, each with whether its moments are quantised: whole blocks only."""
        blocks = whole_blocks(span)
        begin, length = blocks.at * BLOCK - span.at, blocks.length * BLOCK
        if not self._eight_bit or length <= SMALL:
            begin = length = 0
        parts = ((0, begin, False), (begin, begin + length, True), (begin + length, span.length, False))
        for low, high, quantised in parts:
            for start in range(low, high, CHUNK):
                size = min(CHUNK, high - start)
                yield Span(span.start + start, span.at + start, size), quantised

    @staticmethod
    def _chunk(tensor: Tensor, span: Span, quantised: bool) -> _Chunk:
        made = _Chunk(span.start, span.at, span.length)
        for key in MOMENTS:
            if quantised:
                signed = key == "exp_avg"
                made.values[key] = _eight_bit_state().zeros((span.length,), signed, BLOCK, tensor.device)
            else:
                made.values[key] = torch.zeros(span.length, device=tensor.device)
        return made


def whole_blocks(span: Span) -> Span:
    """Return the blocks that a span holds whole, counted in blocks of the parameter."""
    last = (span.at + span.length) // BLOCK
    first = min(-(-span.at // BLOCK), last)
    return Span(0, first, last - first)


def _join(weights: Tensor, remainder: Tensor) -> Tensor:
    """Return fp32 masters [n] of bf16 weights [n] and int16 remainders [n]."""
    return ((weights.view(torch.int16).to(torch.int32) << 16) + remainder).view(torch.float32)


def _split(master: Tensor, weights: Tensor, remainder: Tensor) -> None:
    """Store fp32 masters [n] as the nearest bf16 weights [n] and what is missing, in the last bit."""
    bits = master.view(torch.int32)
    high = (bits + (1 << 15)) >> 16
    weights.copy_(high.to(torch.int16).view(torch.bfloat16))
    remainder.copy_((bits - (high << 16)).to(torch.int16))


def _quantise(values: Tensor, into: Any, scale: Tensor | None) -> None:
    """Store fp32 [n] as the nearest codes of torchao's map; `scale` [n / 256]: of the blocks, if known."""
    blocks = values.view(-1, BLOCK)
    # torchao's own search for the codes gives the same ones in 2.7 times the time.
    largest = blocks.abs().amax(-1)
    if scale is not None:  # 0 where the block was in fp32
        largest = torch.where(scale > 0, scale, largest)
    into.scale.copy_(largest)
    between = (into.qmap[1:] + into.qmap[:-1]) / 2
    scaled = blocks / largest.clamp(min=torch.finfo(torch.float32).tiny).unsqueeze(-1)
    into.codes.copy_(torch.bucketize(scaled, between, right=True, out_int32=True).view(-1))


@cache
def _eight_bit_state() -> Any:
    """Return torchao's class of 8-bit states; imported late, as few trainings use it."""
    unhide("torchao")
    loggers = [logging.getLogger(name) for name in ("torchao", "torch.utils._pytree")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:  # it warns of kernels that are not used here, and of its own calls
        logger.setLevel(logging.ERROR)
    try:
        from torchao.optim.subclass_8bit import OptimState8bit
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
    return OptimState8bit
