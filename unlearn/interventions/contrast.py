"""Decode away from a model that knows the forget set better (WHP as in MUSE, arXiv 2407.06460)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import transformers
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from unlearn.config import Section
from unlearn.errors import UserError
from unlearn.interventions._base import Intervention
from unlearn.passes.head import head_on

if TYPE_CHECKING:
    from transformers import DynamicCache, PreTrainedModel


class ContrastOptions(Section):
    """`method.intervention` with `name: contrast`."""

    alpha: NonNegativeFloat = Field(1.0, description="how far logits move away from the reinforced model's")


def contrasted(base: Tensor, reinforced: Tensor, alpha: float) -> Tensor:
    """Return v_b − α·ReLU(v_r − v_b), elementwise on logits."""
    return base - alpha * (reinforced - base).relu()


class Contrast(Intervention):
    """Subtract from the logits what a reinforced model adds: the target trained further on the forget set.

    The reinforced model is a module of this one, frozen and in evaluation mode. It gets the model's input,
    and has a key-value cache for each of the model's. Beam search, which reorders caches, is not supported.
    """

    reinforced_too = True
    Options = ContrastOptions

    def __init__(self, options: ContrastOptions, reinforced: PreTrainedModel) -> None:
        super().__init__(options)
        self.alpha = options.alpha
        self.reinforced = reinforced.requires_grad_(False).eval()
        self._caches: WeakKeyDictionary[Any, DynamicCache] = WeakKeyDictionary()

    def hooks(self, model: Any) -> list[RemovableHandle]:
        """
        Raises:
            UserError: the two models have different vocabularies.
        """
        theirs, own = self.reinforced.config.vocab_size, model.config.vocab_size
        if theirs != own:
            raise UserError(
                f"method.intervention: the reinforced model has {theirs} tokens, the model {own}: "
                "reinforce a copy of the model itself"
            )
        return [model.register_forward_hook(self._contrast, with_kwargs=True)]

    def train(self, mode: bool = True) -> Contrast:
        super().train(mode)
        self.reinforced.eval()
        return self

    def tensors(self) -> dict[str, Tensor]:
        return {}  # the reinforced model is saved to a folder

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        pass

    def save_reinforced(self, folder: Path, weights: dict[str, Tensor] | None = None) -> None:
        """Write the reinforced model as a plain Hugging Face folder; `weights` replaces its state dict."""
        state = {} if weights is None else {"state_dict": weights}
        self.reinforced.save_pretrained(folder, **state)

    def _contrast(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Any:
        assert self.current is not None
        index = self.current.layout.index  # the head's own positions; other kept states come after them
        with torch.no_grad(), head_on(self.reinforced, index):
            cache = self._cache(output.get("past_key_values"))
            theirs = self.reinforced(*args, **{**kwargs, "past_key_values": cache}).logits
        own, rest = output.logits.split([theirs.shape[1], output.logits.shape[1] - theirs.shape[1]], dim=1)
        output.logits = torch.cat([contrasted(own, theirs, self.alpha), rest], dim=1)
        return output

    def _cache(self, key: Any) -> DynamicCache | None:
        """Return the reinforced model's cache for one of the model's, which the model has just extended."""
        if key is None:
            return None
        if key not in self._caches:
            assert self.current is not None
            if self.current.start:
                raise RuntimeError(
                    "contrast decoding cannot continue a key-value cache that was filled without it"
                )
            self._caches[key] = transformers.DynamicCache(config=self.reinforced.config)
        return self._caches[key]
