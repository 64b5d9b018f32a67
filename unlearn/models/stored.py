"""Parameters that stay in the files of a model until an engine takes what a process keeps of them.

safetensors files are mapped: a tensor is a view of the file, whose pages are shared by the processes of a
machine and read when they are used. What each process copies is what it converts.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.utils import cached_file

from unlearn import interventions
from unlearn.models import model_files

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from unlearn.models.locate import CheckpointSource

_STORED = "stored_value"
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
_NOT_FLOATING = ("BOOL", "U", "I")


def precision(checkpoint: CheckpointSource, computed: torch.dtype) -> torch.dtype | None:
    """Return the dtype in which a model's weights can be used as they are stored: that of its files, or
    `computed` where they have several. None: there are no safetensors files, or of a dtype that is no
    training's.
    """
    folder = checkpoint.folder or _snapshot(checkpoint)
    if folder is None or not model_files.has_weights(folder):
        return None
    names = set().union(*(model_files.dtypes(file) for file in model_files.weight_files(folder)))
    floating = {name for name in names if not name.startswith(_NOT_FLOATING)}
    if not floating <= _DTYPES.keys():
        return None
    return _DTYPES[floating.pop()] if len(floating) == 1 else computed


def _snapshot(checkpoint: CheckpointSource) -> Path | None:
    """Return the folder of a hub repository's weights, which are downloaded."""

    def fetched(name: str) -> Path | None:
        file = cached_file(
            checkpoint.name, name, _raise_exceptions_for_missing_entries=False, **checkpoint.file_options
        )
        return None if file is None else Path(file)

    if (single := fetched(model_files.WEIGHTS)) is not None:
        return single.parent
    if (index := fetched(model_files.INDEX)) is None:
        return None
    for shard in sorted(set(model_files.read_object(index)["weight_map"].values())):
        fetched(shard)
    return index.parent


def widen_buffers(model: PreTrainedModel) -> None:
    """Give a model that was loaded in another dtype the buffers that it has in fp32."""
    from accelerate import init_empty_weights  # a second of imports, for few models
    from transformers.initialization import no_init_weights

    floating = {name: b for name, b in model.named_buffers() if b.is_floating_point()}
    narrow = {name for name, buffer in floating.items() if buffer.dtype != torch.float32}
    computed = dict(model.named_non_persistent_buffers())
    fresh: Mapping[str, Tensor] = {}
    if narrow & computed.keys():  # computed in the dtype of the model: once more, in fp32
        with init_empty_weights(include_buffers=False), no_init_weights():
            fresh = dict(type(model)(copy.deepcopy(model.config)).named_buffers())
    for name in narrow:
        module, _, own = name.rpartition(".")
        model.get_submodule(module)._buffers[own] = (
            fresh[name] if name in computed else floating[name].float()
        )


def defer(model: nn.Module) -> nn.Module:
    """Set the values of a model's parameters aside for `stored`, but for those of its edits, which may differ
    between processes. The model has fp32 zeros without memory instead, and adapters can be added to it."""
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not interventions.is_of_edit(name):
            setattr(parameter, _STORED, parameter.data)
            parameter.data = torch.zeros((), device=parameter.device).expand(parameter.shape)
    return model


def stored(parameter: nn.Parameter) -> Tensor | None:
    """Return the value of a parameter that `defer` set aside; None where the parameter has it itself."""
    value: Tensor | None = getattr(parameter, _STORED, None)
    return value


def forget(parameter: nn.Parameter) -> None:
    """Drop what `defer` set aside of a parameter."""
    delattr(parameter, _STORED)


def replace(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Give parameters other values, by name, without copying those of a deferred model."""
    for name, parameter in model.named_parameters():
        if name in weights and stored(parameter) is not None:
            setattr(parameter, _STORED, weights[name])
        elif name in weights:
            parameter.data.copy_(weights[name])


def fill(model: nn.Module, device: torch.device, dtype: torch.dtype) -> None:
    """Copy the parameters that `defer` set aside to a device in `dtype`, one after the other."""
    for parameter in model.parameters():
        fill_parameter(parameter, device, dtype)


def fill_parameter(parameter: nn.Parameter, device: torch.device, dtype: torch.dtype) -> None:
    """Copy a parameter to a device in `dtype` if `defer` set it aside."""
    if (value := stored(parameter)) is not None:
        parameter.data = value.to(device, dtype, copy=True)
        forget(parameter)


def elements(parameters: Iterable[nn.Parameter]) -> int:
    """Return how many numbers parameters have as a whole, also where ZeRO 3 shares them out."""
    return sum(int(getattr(parameter, "ds_numel", parameter.numel())) for parameter in parameters)
