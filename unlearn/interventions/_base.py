"""The base class of interventions: hooks, and the layout of a pass."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unlearn.config import Section
from unlearn.data.batching import Batch
from unlearn.errors import UserError
from unlearn.passes.prompt_layout import Layout, current_layout
from unlearn.paths import file_problem
from unlearn.plugins import class_name


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
        """Return the ends [B] of the prompts, from this call's first token; negative after the prompt."""
        return self.layout.prompt_end - self.start

    @property
    def past_prompts(self) -> bool:
        return self.start >= self.layout.valid.shape[1]

    @property
    def real(self) -> Tensor:
        """Return [B, T] bool: which of this call's tokens are not padding."""
        known = self.layout.valid[:, self.start : self.start + self.input_ids.shape[1]]
        return nn.functional.pad(known, (0, self.input_ids.shape[1] - known.shape[1]), value=True)


class Intervention(nn.Module):
    """An edit of what a causal model computes, saved and loaded with its weights.

    An attached intervention is one of the modules in `model.interventions`, so it is moved, trained and
    checkpointed with the model. Its hooks also run on the model inside an engine. A call of the model needs a
    layout (`unlearn.passes.prompt_layout.laid_out`).

    It works with gradient checkpointing. Some releases of transformers run hooks inside a checkpointed block;
    there an edit is recomputed with the layout of the last pass, so go backward before the next forward.
    """

    name: ClassVar[str]
    """The name in `method.intervention.name`: of its file or, outside this package, its dotted path."""
    Options: ClassVar[type[Section]]
    files: ClassVar[tuple[str, ...]] = ()
    """The options that name files; their content is part of a run's fingerprint."""
    trains: ClassVar[bool] = False
    """Whether training moves its parameters; the model is frozen then."""
    gated: ClassVar[bool] = False
    """Whether it has gates, which a term can look at (`gates`)."""
    reinforced_too: ClassVar[bool] = False
    """Whether it needs a copy of the target trained further on the forget set; then it is made of its options
    and that model."""
    sets: ClassVar[tuple[str, ...]] = ()
    """The sets of the data that `fit` needs."""

    @classmethod
    def prompt_share(cls, options: Any) -> float:
        """Return the share of a plain text's tokens that is its prompt in training; 0: the first token."""
        return 0.0

    @classmethod
    def file_problem(cls, option: str, file: str) -> str | None:
        """Return why the file of an option cannot be used, as far as it shows without reading it whole."""
        return file_problem(file)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        package, _, file = cls.__module__.rpartition(".")
        shipped = package == __name__.rpartition(".")[0]
        named_after = cls.__qualname__ == class_name(file)
        own = cls.__module__ if named_after else f"{cls.__module__}.{cls.__qualname__}"
        cls.name = file if shipped else own

    def __init__(self, options: Section) -> None:
        super().__init__()
        self.options = options
        self.current: Pass | None = None
        self._handles: list[RemovableHandle] = []

    def attach(self, model: nn.Module, *, train: bool = True) -> None:
        """Register the hooks on the model and become one of its modules, after those attached before.

        An intervention that trains freezes the model and all earlier interventions. With `train` off it is
        frozen itself, and the model is left as it is.
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
        """Remove the hooks; the model computes what it did before."""
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def hooks(self, model: Any) -> list[RemovableHandle]:
        """Register the edit on the modules of the model and return the handles."""
        raise NotImplementedError

    def begin(self) -> None:
        """Prepare for the pass in `self.current`, which is about to run."""

    def fit(self, model: nn.Module, forget: Iterable[Batch], retain: Iterable[Batch]) -> None:
        """Compute what is not trained, before attaching; each iterable is read more than once."""

    def gates(self) -> Tensor:
        """Return gate logits [B, K] of the last forward, one column per edited layer; if `gated`."""
        raise NotImplementedError

    def save_reinforced(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write the reinforced model as a plain Hugging Face folder; if `reinforced_too`.

        weights: its state dict, where the module's own weights are sharded.
        """
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Return the options as JSON, enough to make it again."""
        return {"name": self.name, **self.options.model_dump(mode="json")}

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors for `save`, by name: the state dict unless a part of it is saved otherwise."""
        return self.state_dict()

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Load what `tensors` returned."""
        self.load_state_dict(tensors)

    def parts(self) -> dict[str, str]:
        """Return beginnings of parameter names, each with a description: training must move some of each."""
        return {"": f"the parameters of {self.name}"}

    def between_passes(self) -> dict[str, Any]:
        """Return attributes as they are before any pass: a copy of the model starts with them."""
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
    """Return the transformers model that interventions attach to, taken out of an engine or adapters."""
    inner: Any = getattr(model, "module", model)
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def blocks(model: nn.Module) -> nn.ModuleList:
    """Return the decoder blocks of a causal transformers model, in order.

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
        f"{type(inner).__name__} has no list of {depth} blocks: interventions, and passes that read or "
        "overwrite the states between blocks, need a decoder-only model of transformers"
    )


def edited(output: Any, hidden: Tensor) -> Any:
    """Return a block's output with other hidden states; it is a tensor, or a tuple that begins with one."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


def hidden_of(output: Any) -> Tensor:
    """Return the hidden states [B, T, D] of a block's output."""
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def checked_layer(layer: int, layers: int, key: str) -> str | None:
    """Return what is wrong with the number of a layer, None where nothing is."""
    if 0 <= layer < layers:
        return None
    return f"method.intervention.{key}={layer}: the model has {layers} layers, 0 to {layers - 1}"


def seeded(seed: int) -> torch.Generator:
    """Return a generator of random numbers that is the same on every process."""
    return torch.Generator().manual_seed(seed)
