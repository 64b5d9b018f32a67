"""Which parameters the terms of a method move, and what was chosen to be trained and gets no gradient."""

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
from unlearn.passes.prompt_layout import all_prompt, laid_out
from unlearn.terms import Term

_HEADED = {"logp", "alt_logp", "logits"}


def chosen(method: MethodConfig, lora: LoraConfig) -> bool:
    """Whether less than the whole model is trained."""
    return bool(method.terms) and (method.train is not None or method.intervention is not None or lora.r > 0)


def problems(model: nn.Module, method: MethodConfig, lora: LoraConfig, terms: Sequence[Term]) -> list[str]:
    """What of the configuration trains a parameter that no gradient reaches.

    Every parameter that `method.train` names must be reached, and something of each part of an intervention
    and of each kind of module that `model.lora.targets` names. Terms have their layers as numbers
    (`models.resolve_layers`). Of a model on the meta device whose code looks at values nothing is told.
    """
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    try:
        lost = unreached(model, terms)
    except Exception:  # the model's own code, which may want to know values
        if next(model.parameters()).is_meta:
            return []
        lost = _lost(model, dict(model.named_parameters(remove_duplicate=False)), terms)
    if not lost:
        return []
    why = f"no gradient reaches it: {_looks(terms)}"
    found = [
        f"method.train={pattern}: trains {_some(hit)}, and {why}; name parameters that come before"
        for pattern in method.train or ()
        if (hit := fnmatch.filter(lost, pattern))
    ]
    if method.train is None and lora.r:
        reached = _adapted(lora, set(trained) - set(lost))
        found += [
            f"{key}: adapts {_some(sorted(modules))}, and {why}; adapt modules that come before"
            for key, modules in _adapted(lora, trained).items()
            if modules and not reached[key]
        ]
    for place, edit in enumerate(interventions.attached(model)):
        for part, what in edit.parts().items():
            names = {name for name in trained if name.startswith(f"interventions.{place}.{part}")}
            if names and names <= set(lost):
                found.append(f"method.intervention: trains {what}, and {why}; edit what comes before")
    return found


def unreached(model: nn.Module, terms: Sequence[Term]) -> list[str]:
    """Names of the trained parameters that no term's loss depends on.

    The model, which may be on the meta device, is called once on tensors that have shapes and no content.
    """
    with FakeTensorMode(allow_non_fake_inputs=True):
        # Of tied parameters, one tensor for both names.
        made = {id(t): _empty(t) for t in chain(model.parameters(), model.buffers())}
        named = chain(
            model.named_parameters(remove_duplicate=False), model.named_buffers(remove_duplicate=False)
        )
        return _lost(model, {name: made[id(tensor)] for name, tensor in named}, terms)


def _empty(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, requires_grad=tensor.requires_grad)


def _lost(model: nn.Module, tensors: Mapping[str, Tensor], terms: Sequence[Term]) -> list[str]:
    """`unreached` for the model with these tensors in place of its own."""
    weighty = [term for term in terms if term.weight]
    ids = torch.zeros((1, 2), dtype=torch.long, device=next(iter(tensors.values())).device)
    asked = {"input_ids": ids, "use_cache": False, "output_hidden_states": any(map(_is_deep, weighty))}
    with torch.enable_grad(), laid_out(all_prompt(ids)):
        output = torch.func.functional_call(model, dict(tensors), kwargs=asked)
        looked_at = [seen.float().sum() for term in weighty for seen in _seen(model, term, output)]
    for edit in interventions.attached(model):  # what they keep of a pass
        vars(edit).update(edit.between_passes())
    trained = {name: tensors[name] for name, p in model.named_parameters() if p.requires_grad}
    differentiable = [each for each in looked_at if each.requires_grad]
    if not differentiable:
        return list(trained)
    total = torch.stack(differentiable).sum()
    gradients = torch.autograd.grad(total, list(trained.values()), allow_unused=True)
    return [name for name, gradient in zip(trained, gradients, strict=True) if gradient is None]


def _is_deep(term: Term) -> bool:
    return "hidden" in term.needs


def _seen(model: nn.Module, term: Term, output: Any) -> Iterable[Tensor]:
    """What a term looks at of a pass and is differentiated through."""
    if term.needs & _HEADED:
        yield output.logits
    if _is_deep(term):
        yield output.hidden_states[int(term.layer or 0)]
    if "gate" in term.needs:
        yield interventions.gates(model)


def _adapted(lora: LoraConfig, trained: Iterable[str]) -> dict[str, set[str]]:
    """Keys of the configuration, each with the modules that it adapts."""
    modules = {name.partition(".lora_")[0].removeprefix("base_model.model.") for name in trained}
    if isinstance(lora.targets, str):
        return {f"model.lora.r={lora.r}": modules}
    return {
        f"model.lora.targets={target}": {m for m in modules if m == target or m.endswith(f".{target}")}
        for target in lora.targets
    }


def _looks(terms: Sequence[Term]) -> str:
    """Where the terms look, for a message."""
    layers = sorted({int(term.layer or 0) for term in terms if term.weight and _is_deep(term)})
    if not layers:
        return "no term looks at what the model computes with it"
    named = " and ".join(str(layer) for layer in layers)
    last = f"the output of block {layers[-1] - 1}, counted from 0" if layers[-1] else "the embeddings"
    return f"the terms look at the hidden states of layer {named} ({last})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:2]) + (f" and {len(names) - 2} more" if len(names) > 2 else "")
