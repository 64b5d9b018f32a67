"""Check the files of a model folder: read them, of the weights only the headers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from unlearn.errors import did_you_mean, listed

CONFIG, ADAPTER = "config.json", "adapter_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
CONVERT = (
    "only safetensors weights are loaded, because a pickle can run code. If you trust the file, convert it "
    "once with transformers (from_pretrained, then save_pretrained) and use the result: model=local "
    "model.path=/folder"
)
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_AGAIN = "copy or download it again"
_POINTER = b"version https://git-lfs"
_TOKENIZER = ("tokenizer_config.json", "tokenizer.json", "special_tokens_map.json", "added_tokens.json")
_VOCABULARIES = ("tokenizer.json", "*.model", "vocab.*", "*.tiktoken", "tekken.json", "merges.txt")


class Broken(Exception):
    """A file cannot be read; the message names it, the cause and the fix."""


def problem(folder: Path, *, trust: bool = False) -> str | None:
    """Return why the folder's model cannot be loaded: the first cause, and its fix; None: no problem.

    `trust`: run the folder's own code where transformers does not know the model.
    """
    try:
        return _two_kinds(folder) or _configuration(folder, trust) or _weights(folder) or _generation(folder)
    except Broken as error:
        return str(error)


def tokenizer_problem(folder: Path) -> str | None:
    """Return what is wrong with the tokenizer's files; None: no problem."""
    try:
        for name in _TOKENIZER:
            if (folder / name).exists():
                read_object(folder / name)
    except Broken as error:
        return str(error)
    if not any(next(folder.glob(pattern), None) for pattern in _VOCABULARIES):
        return (
            "the folder has no tokenizer (no tokenizer.json): copy the files of the model's tokenizer there"
        )
    return None


def configuration_problem(config: dict[str, Any], *, trust: bool) -> str | None:
    """Return why a model of this config.json cannot be loaded: cause and fix; None: no problem."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING_NAMES
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    kind = config.get("model_type")
    if not isinstance(kind, str):
        return f"config.json has no model_type, so the kind of model is not known: {_AGAIN}"
    own = config.get("auto_map")
    if isinstance(own, dict) and kind not in CONFIG_MAPPING_NAMES:
        return None if trust else (
            f"model_type {kind} is defined by the model's own code: set model.trust_remote_code=true if "
            "you trust that code"
        )  # fmt: skip
    if kind not in CONFIG_MAPPING_NAMES:
        near = did_you_mean(kind, CONFIG_MAPPING_NAMES)
        return (
            f"config.json has model_type {kind}, which this release of transformers does not know"
            f"{near if near.startswith(' (did') else ''}: correct it, or install a newer transformers"
        )
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.get("is_encoder_decoder"):
        return (
            f"model_type {kind} is not a causal (decoder-only) language model, so answers can be neither "
            "scored nor generated: choose a causal one"
        )
    if isinstance(quantised := config.get("quantization_config"), dict):
        how = quantised.get("quant_method", "unknown method")
        return (
            f"the weights are quantised ({how}, quantization_config in config.json) and cannot be trained in "
            "fp32: use the checkpoint that is not quantised (eval=quantisation quantises the result)"
        )
    return None


def weight_files(folder: Path) -> list[Path]:
    """Return the files that hold the weights, as transformers picks them.

    Raises:
        Broken: there are none, or the index does not match them.
    """
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise Broken(_without_weights(folder))
    weight_map = read_object(folder / INDEX).get("weight_map")
    if not (
        isinstance(weight_map, dict) and weight_map and all(isinstance(n, str) for n in weight_map.values())
    ):
        raise Broken(f"{INDEX} is broken (it has no weight_map): {_AGAIN}")
    names = sorted(set(weight_map.values()))
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise Broken(
            f"{INDEX} names {len(names)} files of weights, of which {listed(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing: copy or download what is missing"
        )
    return [folder / name for name in names]


def shapes(folder: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor of the weights, from the files' headers.

    Raises:
        Broken: a file cannot be read.
    """
    stored: dict[str, list[int]] = {}
    for file in weight_files(folder):
        stored |= header(file)
    return stored


def header(file: Path) -> dict[str, list[int]]:
    """Return the shape of each tensor of a safetensors file.

    Raises:
        Broken: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            return {name: tensors.get_slice(name).get_shape() for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Broken(_unreadable(file, str(error))) from error


def dtypes(file: Path) -> set[str]:
    """Return the dtypes of the tensors of a safetensors file, as its header names them (`BF16`).

    Raises:
        Broken: it cannot be read.
    """
    try:
        with safe_open(file, framework="pt") as tensors:
            return {tensors.get_slice(name).get_dtype() for name in tensors.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise Broken(_unreadable(file, str(error))) from error


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object of a file.

    Raises:
        Broken: it cannot be read, or is not a JSON object.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Broken(_unreadable(file, str(error))) from error
    if not isinstance(content, dict):
        raise Broken(f"{file.name} is broken (not a JSON object): {_AGAIN}")
    return content


def has_weights(folder: Path) -> bool:
    """Return whether the folder has the weights of a whole model."""
    return (folder / WEIGHTS).is_file() or (folder / INDEX).is_file()


def _two_kinds(folder: Path) -> str | None:
    if not (folder / ADAPTER).is_file():
        return None
    base = read_object(folder / ADAPTER).get("base_model_name_or_path")
    return (
        f"the folder holds the weights of a whole model and an adapter ({ADAPTER}) of {base or 'a model'}: "
        f"if the adapter is merged already, remove {ADAPTER}; otherwise give the adapter a folder of its own"
    )


def _configuration(folder: Path, trust: bool) -> str | None:
    if (folder / CONFIG).is_file():
        return configuration_problem(read_object(folder / CONFIG), trust=trust)
    if next(folder.glob("*.gguf"), None):
        return (
            "the folder holds a GGUF file and no config.json: convert it once with transformers "
            "(AutoModelForCausalLM.from_pretrained(folder, gguf_file=…), then save_pretrained; likewise the "
            "tokenizer)"
        )
    inside = sorted(file.parent.name for file in _children(folder) if file.name == CONFIG)
    return "the folder holds no model (no config.json)" + (
        f"; did you mean its folder {listed(inside)}?" if inside else f": {_AGAIN}"
    )


def _weights(folder: Path) -> str | None:
    shapes(folder)
    return None


def _generation(folder: Path) -> str | None:
    if (file := folder / "generation_config.json").is_file():
        read_object(file)
    return None


def _without_weights(folder: Path) -> str:
    if shards := sorted(file.name for file in folder.glob("*.safetensors") if file.is_file()):
        return (
            f"the folder has neither {WEIGHTS} nor {INDEX}, the index of {listed(shards)}: "
            "copy or download what is missing"
        )
    if pickled := sorted(file.name for pattern in _PICKLES for file in folder.glob(pattern)):
        return f"its weights are pickled ({listed(pickled)}), and {CONVERT}"
    return f"the folder has no weights (no {WEIGHTS}): copy or download them"


def _unreadable(file: Path, reason: str) -> str:
    try:
        with file.open("rb") as stream:
            begin = stream.read(len(_POINTER))
    except OSError as error:
        return f"{file.name} cannot be read ({error.strerror}): change its permissions or copy it again"
    if begin == _POINTER:
        return f"{file.name} is a pointer of Git LFS, not the file itself: fetch it (git lfs pull)"
    if not begin:
        return f"{file.name} is empty: {_AGAIN}"
    return f"{file.name} is broken, perhaps cut short ({reason}): {_AGAIN}"


def _children(folder: Path) -> Iterator[Path]:
    try:
        yield from folder.glob("*/*.json")
    except OSError:
        return
