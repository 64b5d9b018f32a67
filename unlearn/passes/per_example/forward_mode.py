"""Derivatives of single answer tokens along a direction in the weights, by one forward.

Forward-mode differentiation: every value carries its derivative along the direction. Each trained weight is
replaced, where it is used, by a dual tensor of weight and direction, so that nothing is kept for a backward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.forward_ad import dual_level, make_dual, unpack_dual
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import embedding
from torch.overrides import TorchFunctionMode

from unlearn.data.batching import Batch
from unlearn.passes.forward import answer_logits
from unlearn.passes.per_example.recorder import bound
from unlearn.passes.products import LINEAR, linear, plain_linear_layers
from unlearn.passes.token_logp import token_logp

# Elements of one fp32 block of logits.
_BLOCK = 1 << 22
# Attributes of a tensor that are differentiable; reading any other attribute needs no tangent.
_VIEWS = {getattr(torch.Tensor, name).__get__ for name in ("T", "mT", "H", "mH")}

Direction = Callable[[str], Tensor | None]


@dataclass(frozen=True)
class Tangents:
    """Values per answer token, each [N], in fp32; float64 of a model in float64.

    `logp` in nats, and `effect` = <∇(−logp), direction>.
    """

    logp: Tensor
    effect: Tensor


@torch.no_grad()
def token_effects(model: nn.Module, batch: Batch, direction: Direction) -> Tangents:
    """Return the derivative of each answer token's negative log-likelihood along a direction in the weights.

    `direction` maps the name of a trained parameter to a whole tensor, or to None for zero. It is called at
    each use, in the order of the forward: under ZeRO 3, where every call of the model is a collective, it may
    be one too. The model must be in eval mode; attention runs in torch's math form, which holds
    [B, heads, T, T].

    Raises:
        ValueError: the model is in training mode, or a tensor of the direction has another shape.
    """
    if model.training:
        raise ValueError("token_effects needs a model in eval mode: call model.eval() before")
    with dual_level(), sdpa_kernel(SDPBackend.MATH):
        with _DualWeights(model, direction).active():
            dual = answer_logits(model, batch)
        logits, tangent = unpack_dual(dual)
        effect = torch.zeros(len(logits), device=logits.device)
        if tangent is not None:
            effect = _along(logits, tangent, batch.labels)
    return Tangents(token_logp(logits, batch.labels), effect)


def _along(logits: Tensor, tangent: Tensor, labels: Tensor) -> Tensor:
    """Return Σ_v p_v·(ż_v − ż_label), [N]; for likely labels Σ_v p_v·ż_v − ż_label loses its digits."""
    size = max(1, _BLOCK // logits.shape[-1])
    effects = []
    for rows, change, wanted in zip(*(x.split(size) for x in (logits, tangent, labels)), strict=True):
        wide = torch.promote_types(rows.dtype, torch.float32)
        change = change.to(wide)
        relative = change - change.gather(-1, wanted[:, None])
        effects.append(torch.linalg.vecdot(rows.to(wide).softmax(-1), relative))
    return torch.cat(effects)


class _DualWeights(TorchFunctionMode):
    """Replaces trained parameters, wherever torch uses one, by dual tensors with the direction.

    Parameters that ZeRO 3 partitions are whole only while their modules run, and are replaced only then: a
    use elsewhere sees no direction (`inner_products` refuses such a model).
    """

    def __init__(self, model: nn.Module, direction: Direction) -> None:
        super().__init__()
        self._model, self._direction = model, direction
        self._names = {id(p): name for name, p in model.named_parameters() if p.requires_grad}
        self._whole = {id(p) for p in model.parameters() if not hasattr(p, "ds_id")}

    @contextmanager
    def active(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(plain_linear_layers(self._model))
            for module in self._model.modules():
                for hook in self._hooks(module):
                    stack.callback(hook.remove)
                for name in ("pre_bwd_fn", "post_bwd_fn"):
                    # ZeRO 3 passes a module's inputs and outputs through these functions to notice the
                    # backward. There is no backward here, and they do not support forward mode.
                    if name in module.__dict__:
                        stack.enter_context(_replaced(module, name, SimpleNamespace(apply=_same)))
            stack.enter_context(_replaced(nn.functional, "linear", LINEAR))  # ZeRO 3's does not either
            stack.enter_context(self)
            yield

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if getattr(func, "__name__", "") in ("__get__", "__set__") and func not in _VIEWS:
            return func(*args, **kwargs)
        if func is embedding and len(args) > 1 and self._name(args[1]):
            return self._look_up(args, kwargs)
        if func is LINEAR:
            return self._product(*bound(("input", "weight", "bias"), args, kwargs))
        return func(*self._with_tangents(args), **self._with_tangents(kwargs))

    def _product(self, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Return (x + ẋ)(W + Ẇ)ᵀ + (b + ḃ) to first order."""
        (x, dx), (w, dw) = unpack_dual(rows), unpack_dual(self._with_tangents(weight))
        b, db = (None, None) if bias is None else unpack_dual(self._with_tangents(bias))
        moves = [linear(side, by) for side, by in ((dx, w), (x, dw)) if side is not None and by is not None]
        if db is not None:
            moves.append(db.expand(*x.shape[:-1], -1))
        out = linear(x, w, b)
        return cast(Tensor, make_dual(out, sum(moves[1:], moves[0]))) if moves else out

    def _look_up(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
        """Return the embeddings with their tangents; the padding's vector has none, as in training."""
        ids, weight, padding = bound(("input", "weight", "padding_idx"), args, kwargs)
        out = embedding(*args, **kwargs)
        tangent = self._tangent(weight)
        if tangent is None:
            return out
        moves = embedding(ids, tangent)
        if padding is not None:
            moves = moves.masked_fill((ids == padding)[..., None], 0.0)
        return cast(Tensor, make_dual(out, moves))

    def _with_tangents(self, value: Any) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(map(self._with_tangents, value)) if type(value) in (tuple, list) else value
        if isinstance(value, dict):
            return {key: self._with_tangents(each) for key, each in value.items()}
        if not self._name(value):
            return value
        tangent = self._tangent(value)
        return value if tangent is None else make_dual(value.detach(), tangent)

    def _name(self, value: Any) -> str | None:
        return self._names.get(id(value)) if id(value) in self._whole else None

    def _tangent(self, parameter: Tensor) -> Tensor | None:
        name = self._names[id(parameter)]
        tangent = self._direction(name)
        if tangent is None:
            return None
        if tangent.shape != parameter.shape:
            raise ValueError(
                f"the direction for {name} is {list(tangent.shape)}, the parameter {list(parameter.shape)}"
            )
        return tangent.to(parameter.device, parameter.dtype)

    def _hooks(self, module: nn.Module) -> list[Any]:
        own = [id(p) for p in module.parameters(recurse=False) if hasattr(p, "ds_id")]
        if not own:
            return []

        def enter(*_: Any) -> None:
            self._whole.update(own)

        def leave(*_: Any) -> None:
            self._whole.difference_update(own)

        # After the hook that gathers the parameters, before the one that partitions them again.
        return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave, prepend=True)]


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    former = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, former)


def _same(value: Any) -> Any:
    return value
