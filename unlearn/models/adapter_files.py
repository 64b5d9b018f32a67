"""Check the files of a saved adapter (PEFT's format), and find the model that it belongs to."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unlearn.models import model_files
from unlearn.models.model_files import ADAPTER, Broken, header, read_object
from unlearn.paths import is_folder, repository_problem, user_path

WEIGHTS = "adapter_model.safetensors"
UNREADABLE = (
    f"the adapter has no {WEIGHTS}, and only safetensors weights are loaded, because a pickle can run code. "
    "If you trust its adapter_model.bin, convert it once with PEFT (PeftModel.from_pretrained(base, folder), "
    "then save_pretrained)"
)


def is_adapter(folder: Path) -> bool:
    """Return whether the folder holds an adapter, and not a whole model."""
    return (folder / ADAPTER).is_file() and not model_files.has_weights(folder)


def base_of(folder: Path) -> tuple[str | None, str | None]:
    """Return the base model that the adapter's configuration names, and its hub revision; None for neither.

    Raises:
        Broken: the configuration cannot be read.
    """
    config = read_object(folder / ADAPTER)
    return _text(config.get("base_model_name_or_path")), _text(config.get("revision"))


def problem(folder: Path) -> str | None:
    """Return why the folder's adapter cannot be used: cause and fix; None: no problem."""
    try:
        kind = read_object(folder / ADAPTER).get("peft_type")
        if kind != "LORA":
            return (
                f"{ADAPTER} has peft_type {kind}, and only LoRA adapters are merged here: merge it once with "
                "PEFT (PeftModel.from_pretrained(base, folder).merge_and_unload().save_pretrained(new)) and "
                "copy the tokenizer's files"
            )
        if not (folder / WEIGHTS).is_file():
            return UNREADABLE
        header(folder / WEIGHTS)
    except Broken as error:
        return str(error)
    return None


def base_problem(folder: Path, base: str | None, *, trust: bool, whole: bool = True) -> str | None:
    """Return what is wrong with the base of the folder's adapter; None: no problem, or on a hub.

    `base` is `model.base`, which takes the place of the base that the adapter names. `whole`: also check the
    files of a base on this machine; `trust` as in `model_files.problem`.
    """
    try:
        path = base or base_of(folder)[0]
    except Broken as error:
        return str(error)
    other = "choose another model.base" if base else "name the base: model.base=/folder, or an id of the hub"
    if path is None:
        return f"{ADAPTER} names no base model (base_model_name_or_path): {other}"
    shown = f"the base model.base={path}" if base else f"its base {path} (in {ADAPTER})"
    if reason := repository_problem(path):
        return f"{shown}: {reason}; {other}"
    if not is_folder(path):
        return None
    if user_path(path).resolve() == folder.resolve():
        return f"{shown} is the adapter itself: {other}"
    if is_adapter(user_path(path)):
        return nested(path)
    cause = model_files.problem(user_path(path), trust=trust) if whole else None
    return None if cause is None else f"{shown}: {cause}; or {other}"


def nested(base: str) -> str:
    """Return the message for an adapter whose base is an adapter."""
    return (
        f"its base {base} is an adapter itself, and only one adapter is merged: merge that one into its own "
        "base once with PEFT (merge_and_unload, then save_pretrained), and set model.base to the result"
    )


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value.strip() else None
