"""Save a trained model as a plain Hugging Face folder, and its adapter as a folder of PEFT's."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from unlearn.files import replacing
from unlearn.models import adapter_files
from unlearn.models.adapt import merge_lora
from unlearn.models.adapter_targets import untied, unties
from unlearn.models.locate import CheckpointSource
from unlearn.paths import below_home

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def extrapolated(
    start: Mapping[str, Tensor], learned: Mapping[str, Tensor], scale: float
) -> dict[str, Tensor]:
    """Return start + scale·(learned − start) for each floating tensor; a negative scale negates what was
    learned (task arithmetic, arXiv 2212.04089)."""
    return {
        name: tensor + (start[name].to(tensor.dtype) - tensor) * (1 - scale)
        if tensor.is_floating_point() and name in start
        else tensor
        for name, tensor in learned.items()
    }


def exportable(model: PreTrainedModel | PeftModel, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a plain model that holds `weights`, a full state dict of `model`, with adapters merged.

    Meant for a model whose own weights are sharded or still needed: only its architecture is used. The
    tensors of `weights` become the new model's. Where adapters are on one of two tied weights, the two are
    no longer equal, and the plain model has both.
    """
    from peft import PeftModel, get_peft_model

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    config = untied(base.config) if unties(model) else base.config
    with torch.device("meta"):
        plain = type(base)(config)
        shell: Any = plain
        if isinstance(model, PeftModel):
            shell = get_peft_model(plain, model.active_peft_config)
    shell.load_state_dict(weights, assign=True)
    plain.tie_weights()  # assigning tensors one by one has untied them
    plain.generation_config = base.generation_config
    return merge_lora(shell) if isinstance(shell, PeftModel) else plain


def save_pretrained(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, directory: str | Path, *,
    write_extra: Callable[[Path], None] = lambda _: None,
) -> None:  # fmt: skip
    """Save model and tokenizer as a plain Hugging Face folder with safetensors weights, atomically.

    `write_extra` writes further files into the folder.
    """
    with replacing(Path(directory)) as part:
        model.save_pretrained(part)
        tokenizer.save_pretrained(part)
        write_extra(part)


def save_adapter(
    model: PeftModel, weights: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, directory: Path, *,
    base: CheckpointSource | None,
) -> None:  # fmt: skip
    """Save the adapter of a model, with the tokenizer, in PEFT's format, atomically.

    `weights` is a full state dict of `model`. `base` is the model that was adapted, which the adapter's
    configuration names if it is a folder or on the hub.
    """
    from peft import get_peft_model_state_dict

    config: Any = copy.deepcopy(model.active_peft_config)
    config.base_model_name_or_path = config.revision = None
    if base is not None and base.package is None:
        named = base.adapter or base
        config.base_model_name_or_path = (
            below_home(os.path.abspath(named.name)) if named.folder else named.name
        )
        config.revision = named.options.get("revision")
    config.inference_mode = True
    if not isinstance(config.target_modules, str):  # a set, whose order is another in each process
        config.target_modules = sorted(config.target_modules)
    tensors = get_peft_model_state_dict(model, state_dict=dict(weights), save_embedding_layers=False)
    with replacing(directory) as part:
        config.save_pretrained(part)
        whole = {name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(whole, part / adapter_files.WEIGHTS, metadata={"format": "pt"})
        tokenizer.save_pretrained(part)
