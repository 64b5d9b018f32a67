"""Find trained parameters that get no gradient from the terms of a method."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from unlearn import interventions
from unlearn.config import LoraConfig, MethodConfig
from unlearn.errors import listed
from unlearn.passes.prompt_layout import all_prompt, laid_out
from unlearn.terms import Term


def chosen(method: MethodConfig, lora: LoraConfig) -> bool:
    """Return whether the configuration selects parameters to train."""
    return bool(method.terms) and (method.train is not None or method.intervention is not None or lora.r > 0)


def problems(model: nn.Module, method: MethodConfig, lora: LoraConfig, terms: Sequence[Term]) -> list[str]:
    """Return a message for each setting that trains a parameter without a gradient.

    A gradient must reach every parameter that `method.train` names, some parameter of each part of an
    intervention, and some of each kind of module in `model.lora.targets`. Terms must have their layers as
    numbers (`models.resolve_layers`). For a model on the meta device whose code reads values, the list is
    empty.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    try:
        lost = unreached(model, terms)
    except Exception:  # the model's own code, which may read values
        if next(model.parameters()).is_meta:
            return []
        lost = _lost(model, dict(model.named_parameters(remove_duplicate=False)), terms)
    if not lost:
        return []
    why = f"no gradient reaches it: {_describe(terms)}"
    messages = [
        f"method.train={pattern}: trains {listed(hit, 2)}, and {why}; name parameters that come before"
        for pattern in method.train or ()
        if (hit := fnmatch.filter(lost, pattern))
    ]
    if method.train is None and lora.r:
        reached = _adapted(lora, set(trained) - set(lost))
        messages += [
            f"{key}: adapts {listed(sorted(modules), 2)}, and {why}; adapt modules that come before"
            for key, modules in _adapted(lora, trained).items()
            if modules and not reached[key]
        ]
    for index, edit in enumerate(interventions.attached(model)):
        for part, what in edit.parts().items():
            names = {name for name in trained if name.startswith(f"interventions.{index}.{part}")}
            if names and names <= set(lost):
                messages.append(f"method.intervention: trains {what}, and {why}; edit what comes before")
    return messages


def unreached(model: nn.Module, terms: Sequence[Term]) -> list[str]:
    """Return the names of the trained parameters that no term's loss depends on.

    The model, which may be on the meta device, is called once on fake tensors, which have no content.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Tied parameters share one fake tensor.
        fake = {id(t): _empty(t) for t in chain(model.parameters(), model.buffers())}
        named = chain(
            model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
        )
        return _lost(model, {name: fake[id(tensor)] for name, tensor in named}, terms)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)


def _lost(model: nn.Module, tensors: Mapping[str, Tensor], terms: Sequence[Term]) -> list[str]:
    """Return `unreached` for the model with these tensors in place of its own."""
    weighted = [term for term in terms if term.weight]
    ids = torch.zeros((1, 2), dtype=torch.long, device=next(iter(tensors.values())).device)
    inputs = {"input_ids": ids, "use_cache": False, "output_hidden_states": any(map(_is_deep, weighted))}
    with torch.enable_grad(), laid_out(all_prompt(ids)):
        output = torch.func.functional_call(model, dict(tensors), kwargs=inputs)
        sums = [value.float().sum() for term in weighted for value in _used(model, term, output)]
    for edit in interventions.attached(model):  # reset what the edits keep of a pass
        vars(edit).update(edit.between_passes())
    trained = {name: tensors[name] for name, p in model.named_parameters() if p.requires_grad}
    differentiable = [each for each in sums if each.requires_grad]
    if not differentiable:
        return list(trained)
    total = torch.stack(differentiable).sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]


def _is_deep(term: Term) -> bool:
    return any(each.source == "model" and each.needs_layer for each in term.statistics)


def _used(model: nn.Module, term: Term, output: Any) -> Iterable[Tensor]:
    """Yield the outputs of a pass that a term uses and is differentiated through."""
    if any(each.needs_head for each in term.statistics):
        yield output.logits
    if _is_deep(term):
        yield output.hidden_states[int(term.layer or 0)]
    if any(each.quantity == "gate" for each in term.statistics):
        yield interventions.gates(model)


def _adapted(lora: LoraConfig, trained: Iterable[str]) -> dict[str, set[str]]:
    """Return the keys of the configuration that select modules, each with the modules that it adapts."""
    modules = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in trained}
    if isinstance(lora.targets, str):
        return {f"model.lora.r={lora.r}": modules}
    return {
        f"model.lora.targets={target}": {m for m in modules if m == target or m.endswith(f".{target}")}
        for target in lora.targets
    }


def _describe(terms: Sequence[Term]) -> str:
    """Describe what the terms use of the model, for a message."""
    layers = sorted({int(term.layer or 0) for term in terms if term.weight and _is_deep(term)})
    if not layers:
        return "no term uses what the model computes with it"
    named = " and ".join(str(layer) for layer in layers)
    last = f"the output of block {layers[-1] - 1}, counted from 0" if layers[-1] else "the embeddings"
    return f"the terms use the hidden states of layer {named} ({last})"
