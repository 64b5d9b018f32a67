"""Choose the parameters of a model that train; add, merge and check low-rank adapters."""

from __future__ import annotations

import fnmatch
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import transformers
from torch import nn

from unlearn.config import LoraConfig
from unlearn.errors import UserError
from unlearn.models import adapter_files, nano
from unlearn.models.adapter_targets import untie, unties
from unlearn.models.locate import CheckpointSource, ModelError, adapter_folder
from unlearn.models.model_files import header

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel


def train_only(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters but those whose name matches one of the patterns (`*.mlp.down_proj.weight`).

    Of a model with adapters only these can match: what is saved as the adapter is then all that was trained.

    Raises:
        UserError: a pattern matches none.
    """
    every = [name for name, _ in model.named_parameters()]
    names = [name for name in every if ".lora_" in name] or every
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            of = "model" if names is every else "adapters (model.lora.r), which alone are trained,"
            raise UserError(
                f"method.train={pattern}: no parameter of the {of} has such a name (example: {names[-2]})"
            )
    chosen = {name for name in names if any(fnmatch.fnmatch(name, pattern) for pattern in patterns)}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


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


def merge_saved(model: PreTrainedModel, adapter: CheckpointSource) -> PreTrainedModel:
    """Merge a saved adapter into the weights of its base model, and return the plain model.

    Raises:
        ModelError: the adapter cannot be read, or does not fit the model.
    """
    from peft import PeftModel

    check_saved(model, adapter)
    # Initial adapters are drawn, and then replaced; what the warnings are about has been checked.
    with adapter.explained(), nano.seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted = PeftModel.from_pretrained(model, str(adapter_folder(adapter)), torch_device="cpu")
        if unties(adapted):
            untie(adapted)
        merged = merge_lora(adapted)
    return merged.requires_grad_(True)  # PEFT has frozen it


def check_saved(model: PreTrainedModel, adapter: CheckpointSource) -> list[str]:
    """Compare the header of a saved adapter with its base model, which may be on the meta device.

    Returns:
        Warnings about tensors that are not used.

    Raises:
        ModelError: the adapter cannot be read, or does not fit the model.
    """
    from peft import PeftConfig, get_peft_model, get_peft_model_state_dict

    folder = adapter_folder(adapter)
    with adapter.explained(), nano.seeded(0), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        config: Any = PeftConfig.from_pretrained(str(folder))
        config.init_lora_weights = True  # other ways compute with the weights
        try:
            adapted: Any = get_peft_model(model, config, low_cpu_mem_usage=True)
        except ValueError as error:
            reason = " ".join(str(error).split())
            raise ModelError(f"{adapter.label}: the adapter does not fit its base: {reason}") from error
        needed = get_peft_model_state_dict(adapted, save_embedding_layers=False)
        usable = needed | get_peft_model_state_dict(adapted, save_embedding_layers=True)
        adapted.unload()
    model.requires_grad_(True)
    stored = header(folder / adapter_files.WEIGHTS)
    if missing := sorted(needed.keys() - stored.keys()):
        raise ModelError(
            f"{adapter.label}: the adapter has no weights for {missing[0]} ({len(missing)} in all): its "
            "files are of two adapters, or its base is another model (model.base)"
        )
    for name in sorted(usable.keys() & stored.keys()):
        own = list(usable[name].shape)
        if own[1:] == stored[name][1:] and own[0] != stored[name][0] and ".lora_" not in name:
            raise ModelError(
                f"{adapter.label}: the adapter was trained with embeddings of {stored[name][0]} tokens, and "
                f"its base has {own[0]} ({name}): resize and save the base once with transformers "
                f"(resize_token_embeddings({stored[name][0]}), save_pretrained), and name it as model.base"
            )
        if own != stored[name]:
            raise ModelError(
                f"{adapter.label}: {name} has shape {stored[name]} in the adapter, and "
                f"{own} for its base: the base is another model (model.base)"
            )
    extra = sorted(stored.keys() - usable.keys())
    if not extra:
        return []
    return [f"{adapter.label}: {len(extra)} tensors of the adapter are not used, such as {extra[0]}"]
