"""Record which calls in a model's forward use trained parameters, and on which rows of which example."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge
from torch.nn.functional import embedding
from torch.nn.utils.rnn import pad_sequence
from torch.overrides import TorchFunctionMode

from unlearn.data.batching import Batch
from unlearn.passes.head import unwrap
from unlearn.passes.per_example.parameter_uses import Outer, Own, OwnCall, Rows, Site
from unlearn.passes.products import LINEAR, linear, plain_linear_layers


@dataclass(frozen=True)
class Call:
    """One call that uses parameters: the graph edge of its output, and the graph nodes of its inputs.

    `sites` returns each use of a parameter, from the gradient at the output.
    """

    edge: GradientEdge
    inputs: list[Any]
    parameters: list[nn.Parameter]
    sites: Callable[[Tensor], list[Site]]


@dataclass
class Recorder(TorchFunctionMode):
    """Records calls that use trained parameters.

    Products with a weight and embedding look-ups are recorded where torch computes them, in any module. A
    module that uses its own parameters otherwise is recorded as a whole.
    """

    model: nn.Module
    batch: Batch
    calls: list[Call] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.trained = {id(p): p for p in self.model.parameters() if p.requires_grad}
        self._size, self._width = self.batch.input_ids.shape
        self._answers = tuple(self.batch.lengths.tolist())
        self._headed = False  # from the head on, rows are those of the answer tokens

    @contextmanager
    def recording(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(plain_linear_layers(self.model))
            head = unwrap(self.model).get_output_embeddings()
            hooks = [head.register_forward_pre_hook(self._enter_head)]
            for module in self.model.modules():
                hooks += self._hooks(module)
            for hook in hooks:
                stack.callback(hook.remove)
            with self:
                yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func is LINEAR:
            return self._product(linear, *bound(("input", "weight", "bias"), args, kwargs))
        if func is torch.addmm and len(args) == 3 and not kwargs and args[0].ndim == 1:
            bias, rows, weight = args  # the weight is [in, out] here
            return self._product(_transposed, rows, weight, bias, transposed=True)
        if func is embedding and len(args) > 1 and self._is_trained(args[1]):
            return self._look_up(args, kwargs)
        return func(*args, **kwargs)

    def _product(
        self, func: Any, rows: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool = False
    ) -> Tensor:
        used = [cast(nn.Parameter, p) for p in (weight, bias) if self._is_trained(p)]
        lengths = None
        if used:
            rows = self._expanded(rows, rows.ndim - 1)
            lengths = self._lengths(rows.shape[:-1])
        out = cast(Tensor, func(rows, weight, bias))
        if lengths is None:
            return out
        inputs = rows.detach()

        def sites(grad: Tensor) -> list[Site]:
            at_output = Rows(grad.reshape(-1, grad.shape[-1]), lengths)
            at_input = Rows(inputs.reshape(-1, inputs.shape[-1]), lengths)
            ones = Rows(grad.new_ones(1, 1).expand(len(at_output.values), 1), lengths)
            sides = (at_input, at_output) if transposed else (at_output, at_input)
            return [Outer(p, *(sides if p is weight else (at_output, ones))) for p in used]

        self._record(out, [rows], used, sites)
        return out

    def _look_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        names = ("input", "weight", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq")
        ids, weight, padding, renormed, _, scaled = bound(names, args, kwargs)
        ids = self._expanded(ids, ids.ndim)
        lengths = None if renormed is not None or scaled else self._lengths(ids.shape)
        out = embedding(ids, *args[1:], **kwargs)
        if lengths is None:
            return out

        def sites(grad: Tensor) -> list[Site]:
            right, flat = grad.reshape(-1, grad.shape[-1]), ids.reshape(-1)
            if padding is not None:  # the padding's vector has no gradient
                right = right.masked_fill((flat == padding)[:, None], 0.0)
            return [Outer(weight, Rows(flat, lengths), Rows(right, lengths))]

        self._record(out, [], [weight], sites)
        return out

    def _hooks(self, module: nn.Module) -> list[Any]:
        """Hook a module that has trained parameters and no submodules with parameters."""
        own = [p for p in module.parameters(recurse=False) if self._is_trained(p)]
        if not own or len(list(module.parameters())) > len(list(module.parameters(recurse=False))):
            return []
        started: list[int] = []

        def enter(*_: Any) -> None:
            started.append(len(self.calls))

        def leave(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> Any:
            first = started.pop()
            recorded = {id(p) for call in self.calls[first:] for p in call.parameters}
            if all(id(p) in recorded for p in own) or not isinstance(out, Tensor):
                return out
            out = self._expanded(out, out.ndim)
            self._record_whole(module, own, args, kwargs, out, first)
            return out

        # First among the output hooks: it gets the module's own output, while the weights are whole.
        return [
            module.register_forward_pre_hook(enter),
            module.register_forward_hook(leave, prepend=True, with_kwargs=True),
        ]

    def _record_whole(
        self, module: nn.Module, own: list[nn.Parameter], args: tuple[Any, ...], kwargs: dict[str, Any],
        out: Tensor, first: int,
    ) -> None:  # fmt: skip
        """Record the call of a module in place of the calls inside it, from the `first` on."""
        by_example = self._by_answer if self._headed else self._by_row
        call = OwnCall.of(module, args, kwargs, by_example)
        if call is None or by_example(out) is None:
            return
        del self.calls[first:]
        inputs = [x for x in (*args, *kwargs.values()) if isinstance(x, Tensor)]
        self._record(
            out, inputs, own, lambda grad: [Own(p, call, cast(Tensor, by_example(grad))) for p in own]
        )

    def _record(
        self, out: Tensor, inputs: Sequence[Tensor], used: list[nn.Parameter],
        sites: Callable[[Tensor], list[Site]],
    ) -> None:  # fmt: skip
        nodes = [x.grad_fn for x in inputs]
        if out.requires_grad and out.grad_fn not in nodes:
            self.calls.append(Call(get_gradient_edge(out), nodes, used, sites))

    def _enter_head(self, *_: Any) -> None:
        self._headed = True

    def _is_trained(self, parameter: Any) -> bool:
        return id(parameter) in self.trained

    def _expanded(self, value: Tensor, dims: int) -> Tensor:
        """Expand a value that is computed once for all examples (learned positions) to every example."""
        if self._headed or dims < 2 or value.shape[0] != 1:
            return value
        return value.expand(self._size, *value.shape[1:])

    def _lengths(self, lead: torch.Size) -> tuple[int, ...] | None:
        """Return how many of the rows in these dimensions each example has; None where that is unclear."""
        rows = math.prod(lead)
        if self._headed:
            return self._answers if rows == sum(self._answers) else None
        by_example = len(lead) >= 2 and lead[0] == self._size
        if self._size == 1 or by_example or tuple(lead) == (self._size * self._width,):
            return (rows // self._size,) * self._size
        return None

    def _by_row(self, value: Tensor) -> Tensor | None:
        """Split a value into [B, ...], for each example what the module would get or return for it alone."""
        if value.ndim >= 2 and value.shape[0] == self._size:
            return value.unsqueeze(1)
        if value.ndim >= 1 and value.shape[0] == self._size * self._width:
            return value.unflatten(0, (self._size, self._width))
        return None

    def _by_answer(self, value: Tensor) -> Tensor | None:
        """Split a value from the head on into [B, ...], padded with zeros."""
        if value.ndim < 2 or value.shape[:2] != (1, sum(self._answers)):
            return None
        return pad_sequence(list(value[0].split(self._answers)), batch_first=True).unsqueeze(1)


def _transposed(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return linear(rows, weight.mT, bias)


def bound(names: Sequence[str], args: Sequence[Any], kwargs: dict[str, Any]) -> list[Any]:
    """Return the arguments of a call in the order of the names, None for those left out."""
    arguments = dict(zip(names, args, strict=False)) | kwargs
    return [arguments.get(name) for name in names]
