"""What every intervention has in common: where it hooks in, and what it knows of a pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unlearn.config import Section
from unlearn.data.batching import Batch
from unlearn.errors import UserError
from unlearn.passes.prompt_layout import Layout, current_layout


@dataclass(frozen=True)
class Pass:
    """One call of the model: tokens [B, T] at the positions from `start` of the rows on.

    `start` is 0 except for calls that continue a cache: the decoding steps of generation.
    """

    layout: Layout
    start: int
    input_ids: Tensor

    @property
    def prompt_end(self) -> Tensor:
        """[B], counted from the first token of this call; negative once the prompt is past."""
        return self.layout.prompt_end - self.start

    @property
    def past_prompts(self) -> bool:
        return self.start >= self.layout.valid.shape[1]

    @property
    def real(self) -> Tensor:
        """[B, T] bool: which of this call's tokens are not padding."""
        known = self.layout.valid[:, self.start : self.start + self.input_ids.shape[1]]
        return nn.functional.pad(known, (0, self.input_ids.shape[1] - known.shape[1]), value=True)


class Intervention(nn.Module):
    """An edit of what a causal model computes, saved and loaded beside its weights.

    Attached, it is one of the modules in `model.interventions`, so it is moved, trained and checkpointed with
    the model. Its hooks run on the model inside an engine as well. A call of the model needs a layout
    (`unlearn.passes.prompt_layout.laid_out`).

    Works with gradient checkpointing. But where a release of transformers runs hooks inside a checkpointed
    block, an edit is recomputed with the layout of the newest pass: go backward before the next forward.
    """

    name: ClassVar[str]
    Options: ClassVar[type[Section]]
    trains: ClassVar[bool] = False
    """Whether its parameters are what training moves; the model is frozen then."""
    reinforced_too: ClassVar[bool] = False
    """Whether it works with a copy of the target trained further on the forget set."""
    sets: ClassVar[tuple[str, ...]] = ()
    """The sets of the data that `fit` wants."""

    def __init__(self, options: Section) -> None:
        super().__init__()
        self.options = options
        self.current: Pass | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module, *, train: bool = True) -> None:
        """Hook into the model and become one of its modules, after those attached before.

        One that trains freezes the model with all earlier interventions, unless `train` is off: then it is
        itself frozen and the model left as it is.
        """
        inner = host(model)
        if self.trains and train:
            inner.requires_grad_(False)
        else:
            self.requires_grad_(False)
        self.to(next(inner.parameters()).device)
        self._handles = [inner.register_forward_pre_hook(self._begin, with_kwargs=True), *self.hooks(inner)]
        if not hasattr(inner, "interventions"):
            inner.interventions = nn.ModuleList()
        inner.interventions.append(self)

    def detach(self) -> None:
        """Let go of the hooks; the model computes what it did before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def hooks(self, model: Any) -> list[RemovableHandle]:
        """Register on the modules of the model what makes the edit."""
        raise NotImplementedError

    def begin(self) -> None:
        """A new pass, in `self.current`, is about to run."""

    def fit(self, model: nn.Module, forget: Iterable[Batch], retain: Iterable[Batch]) -> None:
        """Find what is not trained, before attaching; each iterable is gone through more than once."""

    def facts(self) -> dict[str, Any]:
        """The options as JSON, enough to make it again."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def tensors(self) -> dict[str, Tensor]:
        """What `save` writes, by name: the state dict unless a part of it is saved otherwise."""
        return self.state_dict()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take over what `tensors` gave."""
        self.load_state_dict(tensors)

    def parts(self) -> dict[str, str]:
        """Beginnings of parameter names, each with what they are of: what training must move something of."""
        return {"": f"the parameters of {self.name}"}

    def between_passes(self) -> dict[str, Any]:
        """Attributes as they are when no pass has run: what a copy of the model starts with."""
        return {"current": None}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, **self.between_passes()}

    def _begin(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        layout = current_layout()
        if layout is None:
            raise RuntimeError(
                f"the model has a {self.name} intervention and was called without a layout: wrap the call in "
                "unlearn.passes.prompt_layout.laid_out(…), so that it knows where prompts end"
            )
        ids = kwargs["input_ids"] if "input_ids" in kwargs else args[0]
        cache = kwargs.get("past_key_values")
        self.current = Pass(layout, 0 if cache is None else int(cache.get_seq_length()), ids)
        self.begin()


def host(model: nn.Module) -> Any:
    """The transformers model that interventions attach to, inside an engine or adapters or not."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a causal transformers model, in order.

    Raises:
        UserError: the model has no list of modules as long as its configuration's `num_hidden_layers`.
    """
    inner = host(model)
    depth = inner.config.get_text_config(decoder=True).num_hidden_layers
    for name, module in inner.named_modules():
        inside = name.split(".")[0] == "interventions"
        if isinstance(module, nn.ModuleList) and len(module) == depth and not inside and depth:
            return module
    raise UserError(
        f"method.intervention: {type(inner).__name__} has no list of {depth} blocks to attach to: "
        "interventions need a decoder-only model of transformers"
    )


def edited(output: Any, hidden: Tensor) -> Any:
    """A block's output with other hidden states; blocks give a tensor, or a tuple that begins with one."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def hidden_of(output: Any) -> Tensor:
    """The hidden states [B, T, D] of a block's output."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def checked_layer(layer: int, layers: int, key: str) -> str | None:
    """What is wrong with a layer's number, if anything."""
    if 0 <= layer < layers:
        return None
    return f"method.intervention.{key}={layer}: the model has {layers} layers, 0 to {layers - 1}"


def seeded(seed: int) -> torch.Generator:
    """Draws of one's own, the same on every process."""
    return torch.Generator().manual_seed(seed)
