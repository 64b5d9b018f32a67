"""Interventions: methods that change what a model computes, not its weights. Make, attach, save, load."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import transformers
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from unlearn import plugins
from unlearn.config import Section
from unlearn.errors import ConfigError, UserError
from unlearn.files import read_json, write_json
from unlearn.interventions._base import Intervention, Pass, blocks, host

if TYPE_CHECKING:
    from transformers import PreTrainedModel

__all__ = [
    "INTERVENTIONS", "Intervention", "Pass", "attached", "blocks", "check", "files", "gates", "host",
    "is_edited", "is_gated", "is_of_edit", "load", "make", "prompt_share", "save", "sets", "split", "trains",
    "wants_reinforced",
]  # fmt: skip

INTERVENTIONS = plugins.Kind(__name__, "intervention", "class", ("Options", "trains", "facts", "hooks"))
_FACTS, _TENSORS, _PREFIX = "interventions.json", "interventions.safetensors", "interventions."


def trains(options: Mapping[str, Any]) -> bool:
    """Return whether an intervention with these options is trained, with the model frozen."""
    return _find(options).trains


def is_gated(options: Mapping[str, Any]) -> bool:
    """Return whether an intervention with these options has gates that a term can look at."""
    return _find(options).gated


def sets(options: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the sets of the data that an intervention is fitted on."""
    return _find(options).sets


def prompt_share(options: Mapping[str, Any] | None) -> float:
    """Return the share of a plain text's tokens that is its prompt in training (None: no intervention)."""
    return 0.0 if options is None else _find(options).prompt_share(_options(options))


def wants_reinforced(options: Mapping[str, Any]) -> bool:
    """Return whether an intervention needs a copy of the target trained further on the forget set."""
    return _find(options).reinforced_too


def files(options: Mapping[str, Any]) -> dict[str, str]:
    """Return the files that an intervention reads, by the option that names each."""
    return {name: str(options[name]) for name in _find(options).files if options.get(name)}


def check(options: Mapping[str, Any]) -> list[str]:
    """Return what is wrong with `method.intervention`, a mapping with `name` and the intervention's options.

    Needs no model; the number of a layer is checked against the model's depth in `make`.
    """
    if options.get("name") is None:
        return [f"method.intervention.name is not set (known: {', '.join(INTERVENTIONS.listed())})"]
    try:
        _options(options)
        named = files(options)
    except ConfigError as error:
        return error.problems
    kind = _find(options)
    problems = {name: kind.file_problem(name, file) for name, file in named.items()}
    return [
        f"method.intervention.{name}={named[name]}: {problem}"
        for name, problem in problems.items()
        if problem
    ]


def make(
    options: Mapping[str, Any], *, hidden_size: int, layers: int, seed: int = 0,
    reinforced: PreTrainedModel | None = None,
) -> Intervention:  # fmt: skip
    """Return the intervention that `options` (as in `check`) describe, not yet attached.

    `hidden_size` and `layers` are the model's. `reinforced` is the second model of an intervention that needs
    one; the intervention takes it over.

    Raises:
        ConfigError: the options do not fit the model.
        UserError: the intervention needs a reinforced model and there is none.
    """
    kind: Any = _find(options)
    made: Intervention
    if not kind.reinforced_too:
        made = kind(_options(options), hidden_size=hidden_size, layers=layers, seed=seed)
        return made
    if reinforced is None:
        name = options["name"]
        raise UserError(f"method.intervention.name={name} needs a reinforced model: set method.reinforced")
    made = kind(_options(options), reinforced)
    return made


def attached(model: nn.Module) -> list[Intervention]:
    """Return the interventions of a model, in the order in which they were attached."""
    return list(getattr(host(model), "interventions", ()))


def gates(model: nn.Module) -> Tensor:
    """Return gate logits [B, K] of the last forward: one column per edited layer of the last trainable edit.

    Raises:
        RuntimeError: the model has no trainable gated edit, or was not called yet.
    """
    for each in reversed(attached(model)):
        if each.gated and any(p.requires_grad for p in each.parameters()):
            return each.gates()
    raise RuntimeError("a term looks at gates, but no trainable gated edit is attached to the model")


def is_of_edit(name: str) -> bool:
    """Return whether a tensor of a state dict belongs to an intervention, by its name."""
    return name.startswith(_PREFIX)


def split(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Split a whole state dict into the model's own tensors and those of its interventions, for `save`."""
    own = {name: t for name, t in weights.items() if not is_of_edit(name)}
    return own, {name: t for name, t in weights.items() if is_of_edit(name)}


def save(model: nn.Module, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the model's interventions to the folder of its weights; nothing where it has none.

    Writes `interventions.json` and `interventions.safetensors`, and the folder `reinforced` of one with a
    reinforced model. `weights`, a whole state dict of the model, replaces the weights of sharded modules.
    """
    edits = attached(model)
    if not edits:
        return
    folder.mkdir(parents=True, exist_ok=True)
    facts, tensors = [], {}
    for place, each in enumerate(edits):
        prefix = f"{_PREFIX}{place}."
        for name, tensor in each.tensors().items():
            full = tensor if weights is None else weights[prefix + name]
            tensors[f"{place}.{name}"] = full.detach().cpu().contiguous()
        if each.reinforced_too:
            inner = f"{prefix}reinforced."
            given = None if weights is None else {
                n.removeprefix(inner): t for n, t in weights.items() if n.startswith(inner)
            }  # fmt: skip
            each.save_reinforced(folder / _reinforced(place), given)
        facts.append(each.facts())
    save_file(tensors, folder / _TENSORS)
    write_json(folder / _FACTS, {"interventions": facts})


def is_edited(folder: Path) -> bool:
    """Return whether `save` wrote interventions to the folder."""
    return (folder / _FACTS).is_file()


def load(model: PreTrainedModel, folder: Path) -> list[Intervention]:
    """Attach the interventions that `save` wrote to the folder, frozen, and return them.

    The model's own parameters stay as trainable as they were. Empty where the folder has no interventions.

    Raises:
        UserError: the files do not belong together or to the model.
    """
    if not is_edited(folder):
        return []
    shape: Any = host(model).config.get_text_config(decoder=True)
    try:
        facts, tensors = read_json(folder / _FACTS)["interventions"], load_file(folder / _TENSORS)
        for place, options in enumerate(facts):
            prefix, reinforced = f"{place}.", None
            if wants_reinforced(options):
                reinforced = _load_plain(folder / _reinforced(place), host(model))
            made = make(
                options, hidden_size=shape.hidden_size, layers=shape.num_hidden_layers, reinforced=reinforced
            )
            made.restore({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            made.attach(model, train=False)
    except (OSError, KeyError, ValueError, RuntimeError, ConfigError, SafetensorError) as error:
        raise UserError(f"the interventions in {folder} cannot be attached to the model: {error}") from error
    return attached(model)


def _find(options: Mapping[str, Any]) -> type[Intervention]:
    name = str(options.get("name"))
    kind: type[Intervention] = INTERVENTIONS.find(name, f"method.intervention.name={name}")
    return kind


def _options(options: Mapping[str, Any]) -> Section:
    rest = {key: value for key, value in options.items() if key != "name"}
    owner = f"intervention {options['name']}"
    return plugins.parsed(_find(options).Options, rest, "method.intervention", owner)


def _reinforced(place: int) -> str:
    return f"reinforced-{place}" if place else "reinforced"


def _load_plain(folder: Path, model: Any) -> PreTrainedModel:
    loaded = transformers.AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, attn_implementation=model.config._attn_implementation,
        use_safetensors=True, local_files_only=True,
        trust_remote_code=False,  # else transformers asks in the terminal whether to run a folder's code
    )  # fmt: skip
    assert isinstance(loaded, transformers.PreTrainedModel)
    return loaded
