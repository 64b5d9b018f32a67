"""Methods that change what a model computes rather than its weights: made, attached, saved and loaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, PreTrainedModel

from unlearn import plugins
from unlearn.config import Section
from unlearn.errors import ConfigError, UserError, did_you_mean
from unlearn.files import read_json, write_json
from unlearn.interventions.base import Intervention, Pass, blocks, host
from unlearn.interventions.contrast import Contrast
from unlearn.interventions.dsg import Dsg
from unlearn.interventions.grun import Grun
from unlearn.paths import file_problem

__all__ = [
    "Contrast", "Dsg", "Grun", "Intervention", "Pass", "attached", "blocks", "check", "gates", "host", "load",
    "make", "names", "save", "sets", "split", "trains", "wants_reinforced",
]  # fmt: skip

_KINDS: dict[str, type[Intervention]] = {kind.name: kind for kind in (Contrast, Dsg, Grun)}
_FACTS, _TENSORS, _PREFIX = "interventions.json", "interventions.safetensors", "interventions."


def names() -> list[str]:
    return sorted(_KINDS)


def trains(options: Mapping[str, Any]) -> bool:
    """Whether an intervention with these options is trained, the model being frozen."""
    return _KINDS[options["name"]].trains


def sets(options: Mapping[str, Any]) -> tuple[str, ...]:
    """The sets of the data that an intervention is fitted on."""
    kind = _KINDS.get(str(options.get("name")))
    return kind.sets if kind else ()


def wants_reinforced(options: Mapping[str, Any]) -> bool:
    """Whether an intervention works with a copy of the target trained further on the forget set."""
    kind = _KINDS.get(str(options.get("name")))
    return kind is not None and kind.reinforced_too


def check(options: Mapping[str, Any]) -> list[str]:
    """What is wrong with `method.intervention`, a mapping with `name` and the options of that intervention.

    Needs no model; a layer's number meets the model's depth in `make`.
    """
    name = options.get("name")
    if name is None:
        return [f"method.intervention.name is not set (known: {', '.join(names())})"]
    if name not in _KINDS:
        return [f"method.intervention.name={name}: no such intervention{did_you_mean(str(name), names())}"]
    try:
        parsed = _options(options)
    except ConfigError as error:
        return error.problems
    file = getattr(parsed, "sae", None)
    problem = file_problem(file) if file else None
    return [f"method.intervention.sae={file}: {problem}"] if problem else []


def make(
    options: Mapping[str, Any], *, hidden_size: int, layers: int, seed: int = 0,
    reinforced: PreTrainedModel | None = None,
) -> Intervention:  # fmt: skip
    """The intervention that `options` (as in `check`) describe, not yet attached.

    `hidden_size` and `layers` are the model's; `reinforced` is the second model of `contrast`, which the
    intervention takes over.

    Raises:
        ConfigError: the options do not fit the model.
        UserError: `contrast` without a reinforced model.
    """
    name = options["name"]
    if name != Contrast.name:
        kind: Any = _KINDS[name]
        made: Intervention = kind(_options(options), hidden_size=hidden_size, layers=layers, seed=seed)
        return made
    if reinforced is None:
        raise UserError("method.intervention.name=contrast needs a reinforced model: set method.reinforced")
    parsed: Any = _options(options)
    return Contrast(parsed, reinforced)


def attached(model: nn.Module) -> list[Intervention]:
    """The interventions of a model in the order they were attached."""
    return list(getattr(host(model), "interventions", ()))


def gates(model: nn.Module) -> Tensor:
    """Gate logits [B, K] of the newest forward: one column per edited layer of the newest trainable edit.

    Raises:
        RuntimeError: the model has no trainable gated edit, or was not called yet.
    """
    for each in reversed(attached(model)):
        if isinstance(each, Grun) and any(p.requires_grad for p in each.parameters()):
            return each.gates()
    raise RuntimeError("gates were asked for, but no trainable gated edit is attached to the model")


def split(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The model's own tensors of a whole state dict, and those of its interventions for `save`."""
    own = {name: t for name, t in weights.items() if not name.startswith(_PREFIX)}
    return own, {name: t for name, t in weights.items() if name.startswith(_PREFIX)}


def save(model: nn.Module, folder: Path, weights: Mapping[str, Tensor] | None = None) -> None:
    """Write the model's interventions to the folder of its weights; nothing where it has none.

    `interventions.json` and `interventions.safetensors`, and of a contrast the folder `reinforced`.
    `weights`, a whole state dict of the model, takes the place of modules whose own weights are sharded.
    """
    found = attached(model)
    if not found:
        return
    folder.mkdir(parents=True, exist_ok=True)
    facts, tensors = [], {}
    for place, each in enumerate(found):
        prefix = f"{_PREFIX}{place}."
        for name, tensor in each.tensors().items():
            full = tensor if weights is None else weights[prefix + name]
            tensors[f"{place}.{name}"] = full.detach().cpu().contiguous()
        if isinstance(each, Contrast):
            inner = f"{prefix}reinforced."
            given = None if weights is None else {
                n.removeprefix(inner): t for n, t in weights.items() if n.startswith(inner)
            }  # fmt: skip
            each.save_folder(folder / _reinforced(place), given)
        facts.append(each.facts())
    save_file(tensors, folder / _TENSORS)
    write_json(folder / _FACTS, {"interventions": facts})


def load(model: PreTrainedModel, folder: Path) -> list[Intervention]:
    """Attach what `save` wrote to the folder, frozen; the model's own parameters stay as trainable as they
    were. Empty where the folder has no interventions.

    Raises:
        UserError: the files do not belong together or to the model.
    """
    if not (folder / _FACTS).is_file():
        return []
    shape: Any = host(model).config.get_text_config(decoder=True)
    try:
        facts, tensors = read_json(folder / _FACTS)["interventions"], load_file(folder / _TENSORS)
        for place, options in enumerate(facts):
            prefix, reinforced = f"{place}.", None
            if options["name"] == Contrast.name:
                reinforced = _load_plain(folder / _reinforced(place), host(model))
            made = make(
                options, hidden_size=shape.hidden_size, layers=shape.num_hidden_layers, reinforced=reinforced
            )
            made.restore({n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)})
            made.attach(model, train=False)
    except (OSError, KeyError, ValueError, RuntimeError, ConfigError, SafetensorError) as error:
        raise UserError(f"the interventions in {folder} cannot be attached to the model: {error}") from error
    return attached(model)


def _options(options: Mapping[str, Any]) -> Section:
    rest = {key: value for key, value in options.items() if key != "name"}
    name = options["name"]
    return plugins.parsed(_KINDS[name].Options, rest, "method.intervention", name)


def _reinforced(place: int) -> str:
    return f"reinforced-{place}" if place else "reinforced"


def _load_plain(folder: Path, model: Any) -> PreTrainedModel:
    loaded = AutoModelForCausalLM.from_pretrained(
        folder, dtype=next(model.parameters()).dtype, attn_implementation=model.config._attn_implementation,
        use_safetensors=True, local_files_only=True,
    )  # fmt: skip
    assert isinstance(loaded, PreTrainedModel)
    return loaded
