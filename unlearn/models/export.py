"""Save a trained model as a plain Hugging Face folder, and its adapter as a folder of PEFT's."""

from __future__ import annotations

import copy
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers.conversion_mapping import get_model_conversion_mapping

from unlearn import interventions
from unlearn.files import replacing
from unlearn.models import adapter_files
from unlearn.models.adapter_targets import untied, unties
from unlearn.models.locate import CheckpointSource
from unlearn.models.shards import write_shards
from unlearn.paths import below_home

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

log = logging.getLogger(__name__)


def extrapolated(
    start: Mapping[str, Tensor], learned: Iterable[tuple[str, Tensor]], scale: float,
    masters: Mapping[str, Tensor], *, rounded: bool,
) -> Iterator[tuple[str, Tensor]]:  # fmt: skip
    """Yield start + scale·(learned − start) for each floating tensor, on the CPU; a negative scale negates
    what was learned (task arithmetic, arXiv 2212.04089).

    It is computed in fp32, from the `masters` of those that were trained: in bf16 most of what was learned is
    smaller than a step, and would be scaled after it was rounded away. `rounded`: training began at the start
    in the precision of `learned`, as what is not trained does: that rounding is nothing learned.
    """
    for name, tensor in learned:
        own = masters.get(name, tensor).cpu()
        if own.is_floating_point() and name in start:
            before = start[name].cpu()
            if rounded or name not in masters:
                before = before.to(tensor.dtype)
            own = own.float() + (before.float() - own.float()) * (1 - scale)
        yield name, own.to(tensor.dtype)


def architecture(model: PreTrainedModel | PeftModel, dtype: torch.dtype | None = None) -> PreTrainedModel:
    """Return the plain model on the meta device that a model with its adapters merged is; in `dtype`.

    Where adapters are on one of two tied weights, the two are no longer equal, and the plain model has both.
    """
    from peft import PeftModel

    base: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    with torch.device("meta"):
        plain: PreTrainedModel = type(base)(untied(base.config) if unties(model) else base.config)
    if dtype is not None:
        for parameter in plain.parameters():
            parameter.data = parameter.data.to(dtype)
    plain.generation_config = base.generation_config
    return plain


def merged(
    model: PreTrainedModel | PeftModel, tensors: Iterable[tuple[str, Tensor]]
) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of the plain model, by name, one adapted module after the other.

    `tensors` is the state dict of `model`, whose order keeps those of a module together. Adapters are merged
    on the CPU, into copies.
    """
    from peft import PeftModel, get_peft_model
    from peft.tuners.tuners_utils import BaseTunerLayer

    if not isinstance(model, PeftModel):
        yield from tensors
        return
    with torch.device("meta"):
        shell: Any = get_peft_model(architecture(model), model.active_peft_config)
    layers = {name: each for name, each in shell.named_modules() if isinstance(each, BaseTunerLayer)}

    def owner(name: str) -> str:
        parts = name.split(".")
        parents = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
        return next((parent for parent in parents if parent in layers), "")

    def named(name: str) -> str:
        return name.removeprefix("base_model.model.")

    for prefix, group in groupby(tensors, key=lambda each: owner(each[0])):
        if not prefix:
            yield from ((named(name), tensor) for name, tensor in group)
            continue
        layer: Any = layers[prefix]
        own = {name.removeprefix(f"{prefix}."): tensor.to("cpu", copy=True) for name, tensor in group}
        layer.load_state_dict(own, assign=True)
        layer.merge()
        whole = layer.get_base_layer().state_dict()
        layer.to("meta")
        yield from ((named(f"{prefix}.{name}"), tensor) for name, tensor in whole.items())


def exportable(model: PreTrainedModel | PeftModel, weights: Mapping[str, Tensor]) -> PreTrainedModel:
    """Return a plain model that holds `weights`, a full state dict of `model`, with adapters merged.

    Meant for a model whose own weights are still needed: only its architecture is used. The tensors of
    `weights` become the new model's.
    """
    plain = architecture(model)
    plain.load_state_dict(dict(merged(model, weights.items())), assign=True)
    plain.tie_weights()  # assigning tensors one by one has untied them
    return plain


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


def save_streamed(
    model: PreTrainedModel | PeftModel, tensors: Iterable[tuple[str, Tensor]],
    tokenizer: PreTrainedTokenizerBase, directory: Path,
) -> None:  # fmt: skip
    """Do what `save_pretrained` does for other weights, with adapters merged and edits in their files.

    `tensors` is its state dict as in `merged`, of which one module is in memory at a time. All of it is for a
    model whose tensors transformers saves under other names or in other parts; edits are in memory whole.
    """
    edits: dict[str, Tensor] = {}

    def own() -> Iterator[tuple[str, Tensor]]:
        for name, tensor in tensors:
            if interventions.is_of_edit(name):
                edits[name] = tensor.to("cpu", copy=True)
            else:
                yield name, tensor

    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    plain = architecture(model, dtype)
    with replacing(directory) as part:
        if get_model_conversion_mapping(plain, add_legacy=False):
            log.debug("%s is saved from one state dict in memory", type(plain).__name__)
            copies = {name: tensor.to("cpu", copy=True) for name, tensor in own()}
            exportable(model, copies).save_pretrained(part)
        else:
            plain.save_pretrained(part, state_dict={})  # all but the weights
            left_out = {*plain.all_tied_weights_keys, *(plain._keys_to_ignore_on_save or ())}
            shapes = {name: t for name, t in plain.state_dict().items() if name not in left_out}
            write_shards(part, shapes, merged(model, own()))
        tokenizer.save_pretrained(part)
        interventions.save(model, part, weights=edits)


def save_adapter(
    model: PeftModel, weights: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase, directory: Path, *,
    base: CheckpointSource | None,
) -> None:  # fmt: skip
    """Save the adapter of a model, with the tokenizer, in PEFT's format, atomically.

    `weights` has the adapter's tensors by their names in the state dict of `model`. `base` is the model that
    was adapted, which the adapter's configuration names if it is a folder or on the hub.
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
