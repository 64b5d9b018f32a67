"""The modules that get adapters: check their names, and untie embeddings from the head where needed."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import nn

from unlearn.config import LoraConfig
from unlearn.errors import did_you_mean

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def target_problems(model: nn.Module, cfg: LoraConfig) -> list[str]:
    """Return a message for each of `model.lora.targets` that no adapter can be added to, with near names."""
    if isinstance(cfg.targets, str):
        return []
    if not cfg.targets:
        return ["model.lora.targets=[] names no module: leave it out to adapt all linear layers"]
    modules = dict(model.named_modules())
    known = {name.split(".")[-1] for name, module in modules.items() if _is_adaptable(module)}
    problems = []
    for target in cfg.targets:
        matches = [m for name, m in modules.items() if name == target or name.endswith(f".{target}")]
        if not matches:
            problems.append(
                f"model.lora.targets: {target} is no module of the model{did_you_mean(target, known)}"
            )
        elif not any(_is_adaptable(module) for module in matches):
            kind = type(matches[0]).__name__
            problems.append(
                f"model.lora.targets: no adapters can be added to {target}, a {kind}; name linear "
                f"layers (such as {', '.join(sorted(known))})"
            )
    return problems


def unties(model: nn.Module) -> bool:
    """Whether adapters untie the head: they are on one of the tied embeddings and head, or replace one."""
    from peft import PeftModel  # a second of imports, for adapters alone
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    if not isinstance(model, PeftModel):
        return False
    base: Any = model.get_base_model()
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    changed = (BaseTunerLayer, AuxiliaryTrainingWrapper)
    return _is_tied(base.config) and any(isinstance(end, changed) for end in ends)


def untie(model: Any) -> None:
    """Give the head of an adapted model weights of its own, equal to those that it shares."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils import AuxiliaryTrainingWrapper

    head = model.get_base_model().get_output_embeddings()
    if not isinstance(head, AuxiliaryTrainingWrapper):  # which has replaced the head by a copy
        plain: Any = head.get_base_layer() if isinstance(head, BaseTunerLayer) else head
        plain.weight = nn.Parameter(plain.weight.detach().clone())


def has_own_head(model: Any) -> bool:
    """Whether the head has weights of its own though the configuration ties it to the embeddings.

    transformers keeps them where the files have both and they differ.
    """
    ends = (model.get_input_embeddings(), model.get_output_embeddings())
    embeddings, head = (getattr(end, "weight", None) for end in ends)
    return _is_tied(model.config) and embeddings is not None and head is not None and head is not embeddings


def untied(config: PreTrainedConfig) -> PreTrainedConfig:
    """Return a copy of the configuration, without tying the head to the embeddings."""
    copied = copy.deepcopy(config)
    for part in (copied, copied.get_text_config(decoder=True)):
        part.tie_word_embeddings = False
    return copied


def _is_tied(config: PreTrainedConfig) -> bool:
    own = getattr(config, "tie_word_embeddings", False)
    return bool(own or getattr(config.get_text_config(decoder=True), "tie_word_embeddings", False))


def _is_adaptable(module: nn.Module) -> bool:
    weight = getattr(module, "weight", None)
    return isinstance(weight, nn.Parameter) and weight.ndim == 2
