"""Choose the parameters of a model that train, and add or merge low-rank adapters."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from typing import TYPE_CHECKING

import transformers
from torch import nn

from unlearn.config import LoraConfig
from unlearn.errors import UserError
from unlearn.models import nano
from unlearn.models.locate import ModelError

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters but those whose name matches one of the patterns (`*.mlp.down_proj.weight`).

    Raises:
        UserError: a pattern matches none.
    """
    names = [name for name, _ in model.named_parameters()]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UserError(
                f"method.train={pattern}: no parameter of the model has such a name (example: {names[-2]})"
            )
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(fnmatch.fnmatch(name, pattern) for pattern in patterns))


def add_lora(model: PreTrainedModel, cfg: LoraConfig, seed: int) -> PeftModel:
    """Freeze the model and add adapters, which start as zero and are the only parameters that train."""
    from peft import LoraConfig as PeftLoraConfig  # a second of imports, for adapters alone
    from peft import PeftModel, get_peft_model

    config = PeftLoraConfig(
        r=cfg.r,
        lora_alpha=cfg.alpha,
        target_modules=cfg.targets,
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    try:
        with nano.seeded(seed):
            adapted = get_peft_model(model, config)
    except ValueError as error:
        raise ModelError(f"model.lora: {' '.join(str(error).split())}") from error
    assert isinstance(adapted, PeftModel)
    return adapted


def merge_lora(model: PeftModel) -> PreTrainedModel:
    """Merge the adapters into the weights and return the plain model; the adapted model is consumed."""
    merged = model.merge_and_unload()
    assert isinstance(merged, transformers.PreTrainedModel)
    return merged
