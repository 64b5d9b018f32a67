"""One use of a parameter, by example: what each example's gradient by the parameter is computed from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn.utils.rnn import pad_sequence


@dataclass(frozen=True)
class Rows:
    """Vectors [R, D], or token ids [R] that stand for one-hot vectors, one example after the other."""

    values: Tensor
    lengths: tuple[int, ...]

    @property
    def looked_up(self) -> bool:
        return self.values.ndim == 1

    @property
    def width(self) -> int:
        return 1 if self.looked_up else self.values.shape[1]

    def of(self, examples: slice) -> Tensor:
        """Return the rows of some examples, [b, T, D] or [b, T], padded with zeros; at least in fp32."""
        lengths = self.lengths[examples]
        start = sum(self.lengths[: examples.start])
        values = self.values[start : start + sum(lengths)]
        if values.dtype in (torch.bfloat16, torch.float16):
            values = values.float()
        if len(set(lengths)) == 1:
            return values.unflatten(0, (len(lengths), lengths[0]))
        return pad_sequence(list(values.split(lengths)), batch_first=True)


@dataclass(frozen=True)
class Outer:
    """One use of a parameter whose gradient for an example is Σ_t left_t ⊗ right_t."""

    parameter: nn.Parameter
    left: Rows
    right: Rows


@dataclass(frozen=True)
class OwnCall:
    """A call of a module: the values of its parameters and the arguments, tensors by example [B, ...].

    `shared` are the positions of arguments that are the same for all examples. The last arguments are the
    keyword arguments, called `names`.
    """

    module: nn.Module
    values: dict[str, Tensor]
    arguments: list[Any]
    shared: frozenset[int]
    names: tuple[str, ...]

    @property
    def size(self) -> int:
        """Return the number of elements of one example."""
        separate = [v for i, v in enumerate(self.arguments) if i not in self.shared]
        return sum(v[0].numel() for v in separate) + sum(v.numel() for v in self.values.values())

    @classmethod
    def of(
        cls, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any],
        by_example: Callable[[Tensor], Tensor | None],
    ) -> OwnCall | None:  # fmt: skip
        """Return the call; None where an argument cannot be divided into examples."""
        arguments: list[Any] = []
        shared = set()
        for position, value in enumerate((*args, *kwargs.values())):
            if isinstance(value, (tuple, list, dict)):
                return None
            if isinstance(value, Tensor) and (own := by_example(value.detach())) is not None:
                arguments.append(own)
                continue
            if isinstance(value, Tensor) and value.shape[:1] not in ((), (1,)):
                return None
            arguments.append(value.detach() if isinstance(value, Tensor) else value)
            shared.add(position)
        values = {name: p.detach() for name, p in module.named_parameters(recurse=False)}
        return cls(module, values, arguments, frozenset(shared), tuple(kwargs))


@dataclass(frozen=True)
class Own:
    """One use of a parameter in any operation of a module; `grads` [B, ...] are at the module's output."""

    parameter: nn.Parameter
    call: OwnCall
    grads: Tensor

    def gradient(self, examples: slice) -> Tensor:
        """Return the gradients of some examples [b, *shape of the parameter], at least in fp32."""
        call = self.call
        name = next(n for n, p in call.module.named_parameters(recurse=False) if p is self.parameter)
        values = {key: _wide(value) for key, value in call.values.items()}
        bare = _Bare(call.module)

        def one(grads: Tensor, *arguments: Any) -> Tensor:
            split = len(arguments) - len(call.names)
            by_name = dict(zip(call.names, arguments[split:], strict=True))

            def run(value: Tensor) -> Any:
                swapped = {f"module.{key}": v for key, v in (values | {name: value}).items()}
                return functional_call(bare, swapped, arguments[:split], by_name)

            out, back = vjp(run, values[name])  # type: ignore[misc]
            return cast(Tensor, back(grads.to(out.dtype))[0])

        dims = [None if i in call.shared else 0 for i in range(len(call.arguments))]
        arguments = [
            _wide(value if dim is None else value[examples])
            for value, dim in zip(call.arguments, dims, strict=True)
        ]
        grads = _wide(self.grads[examples])
        try:
            return vmap(one, in_dims=(0, *dims))(grads, *arguments)
        except RuntimeError:  # vmap refuses control flow that depends on values
            split = [[v] * len(grads) if dim is None else v for v, dim in zip(arguments, dims, strict=True)]
            return torch.stack([one(*row) for row in zip(grads, *split, strict=True)])


Site = Outer | Own


class _Bare(nn.Module):
    """A module without its hooks."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module.forward(*args, **kwargs)


def _wide(value: Any) -> Any:
    half = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if half else value
