"""Write safetensors files tensor by tensor: no more than one is in memory."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors.torch import _TYPES
from torch import Tensor

from unlearn.models.model_files import INDEX

BYTES = 5 * 10**9
"""Largest size of a file with more than one tensor."""
_NAMES = {dtype: name for name, dtype in _TYPES.items()}
_ALIGNED = 8  # bytes: the data of a file begin at a multiple of it


def write_shards(
    folder: Path, shapes: Mapping[str, Tensor], tensors: Iterable[tuple[str, Tensor]], *, limit: int = BYTES
) -> None:
    """Write tensors to `model.safetensors`, or to numbered files and their index as transformers does.

    `shapes` has tensors on the meta device, with the shapes and dtypes to write. `tensors` yields them in any
    order; others are left out.

    Raises:
        RuntimeError: one is missing or has another shape.
    """
    split = split_torch_state_dict_into_shards(
        dict(shapes), filename_pattern="model{suffix}.safetensors", max_shard_size=limit
    )
    places: dict[str, tuple[Path, int]] = {}
    for name, members in split.filename_to_tensors.items():
        file = folder / name
        places |= {key: (file, at) for key, at in _begin(file, {key: shapes[key] for key in members}).items()}
    for name, tensor in tensors:
        if name in shapes and name in places:
            _write(*places.pop(name), tensor, shapes[name], name)
    if places:
        raise RuntimeError(f"the model to save has no tensor {min(places)} ({len(places)} are missing)")
    if split.is_sharded:
        number = sum(tensor.numel() for tensor in shapes.values())
        metadata = {"total_parameters": number, **split.metadata}
        index = {"metadata": metadata, "weight_map": split.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _begin(file: Path, shapes: Mapping[str, Tensor]) -> dict[str, int]:
    """Write a file's header, and return where in the file the data of each tensor begin.

    The format is an unsigned length of 8 bytes, little-endian; so many bytes of JSON; and the data without
    gaps (https://github.com/huggingface/safetensors). The widest dtypes come first, so that all are aligned.
    """
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in sorted(shapes.items(), key=lambda each: (-each[1].itemsize, each[0])):
        end = at + tensor.numel() * tensor.itemsize
        header[name] = {"dtype": _NAMES[tensor.dtype], "shape": [*tensor.shape], "data_offsets": [at, end]}
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNED)
    begin = _ALIGNED + len(text)
    with file.open("wb") as stream:
        stream.write(len(text).to_bytes(8, "little") + text)
        stream.truncate(begin + at)
    return {name: begin + header[name]["data_offsets"][0] for name in shapes}


def _write(file: Path, at: int, tensor: Tensor, wanted: Tensor, name: str) -> None:
    if tensor.shape != wanted.shape:
        raise RuntimeError(f"{name} has shape {list(tensor.shape)}, the model to save {list(wanted.shape)}")
    data = tensor.detach().to("cpu", wanted.dtype).contiguous().flatten().view(torch.uint8)
    with file.open("r+b") as stream:
        stream.seek(at)
        stream.write(data.numpy().data)  # its errors name their cause
