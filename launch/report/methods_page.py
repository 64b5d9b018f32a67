"""Write docs/methods.md from code and presets: `make docs`.

The text of the page is in `methods.md.j2`; this module makes the tables.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from launch.config_groups import CONFIGS, comment, describe, groups, values_of
from launch.report import markdown
from unlearn import interventions
from unlearn.config import SLOTS, AlternativesConfig, AutoLRConfig, MethodConfig
from unlearn.interventions import INTERVENTIONS
from unlearn.plugins import Kind
from unlearn.rules import RULES
from unlearn.statistics import STATISTICS
from unlearn.terms import OBJECTIVES, WEIGHTINGS, bind, needs_alternatives
from unlearn.training.auto_lr import AutoLR

PAGE = CONFIGS.parent / "docs" / "methods.md"

OTHER = "Other"
"""The heading of methods without a line `# family: …`."""
_ALTERNATIVES = {
    "refusals": "refusals",
    "mismatch": "other questions' answers",
    "sampled": "answers sampled from the target",
    "column": "a column of answers",
}
_ELSEWHERE = {
    "name", "source", *SLOTS, *(f"{slot}_weight" for slot in SLOTS), "further", "alternatives",
    "intervention", "lr", "epochs", "steps", "batch",
}  # fmt: skip
"""Keys with their own place on the page; the others are listed if they differ from their default."""


def page() -> str:
    """Return the page as Markdown."""
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        keep_trailing_newline=True,
    )
    return environment.get_template("methods.md.j2").render(
        overview=_overview(), families=_families(), rules=_rules(), interventions=_interventions(),
        objectives=_functions(OBJECTIVES),
        weightings=_functions(WEIGHTINGS), statistics=_statistics(),
        auto=markdown.summary(AutoLR), auto_options=markdown.options(AutoLRConfig),
        alternatives=markdown.options(AlternativesConfig), scaled=_scaled(),
    )  # fmt: skip


def presets() -> dict[str, MethodConfig]:
    """Return every `method=…` by name."""
    names = groups(own=False)["method"]
    return {name: MethodConfig.model_validate(values_of("method", name)) for name in names}


def terms(method: MethodConfig) -> list[str]:
    """Write the method's terms, e.g. "**retain** 0.1 · `nll`"."""
    stated = [(slot, method.weight(slot), keys) for slot, keys in method.terms.items()]
    stated += [
        (f.slot, f.weight, {"objective": f.objective, **(f.model_extra or {})}) for f in method.further
    ]
    lines = [
        f"**{slot}** {f'{weight:g} · ' if weight != 1 else ''}{_term(keys)}" for slot, weight, keys in stated
    ]
    stated_too = "alternatives" in method.model_fields_set
    return [*lines, *([f"alternatives: {markdown.written(method.alternatives)}"] if stated_too else [])]


def needs(method: MethodConfig) -> list[str]:
    """Return what the method needs in addition to the model and the forget set."""
    bound, edit = bind(method), method.intervention or {}
    needed = {(each.source, each.quantity) for term in bound for each in term.statistics}
    reinforced = any(source == "reinforced" for source, _ in needed)
    paired = any(map(needs_alternatives, bound))
    fitted = interventions.sets(edit) if edit else ()
    second = bool(edit) and interventions.wants_reinforced(edit)
    sets = {*method.sets, *fitted}
    conditions = {
        "full split": "full" in sets,
        "retain set": "retain" in sets or (paired and method.alternatives_from_retain),
        _ALTERNATIVES[method.alternatives.source]: paired,
        "log-probs": ("reference", "logp") in needed,
        "last hidden states": ("reference", "logits") in needed,
        "layer states": ("reference", "hidden") in needed,
        "reinforced model": reinforced or second,
        "unlearned model": method.unlearned.method is not None,
        "mean teacher": ("teacher", "logits") in needed,
        "annotations": ("data", "important") in needed,
        "prompts that the model refuses": ("reference", "direction") in needed,
        **{f"`method.intervention.{key}`": True for key in _unset(edit)},
    }
    return [name for name, needed in conditions.items() if needed]


def training(method: MethodConfig) -> list[str]:
    """Write learning rate, length and batch, and every key that differs from its default."""
    texts = [f"intervention {markdown.call(method.intervention)}"] if method.intervention else []
    if method.sets:
        length = f"{method.steps} steps" if method.steps else f"{method.epochs:g} epochs"
        texts.append(f"lr {markdown.scientific(method.lr)} · {length} · batch {method.batch}")
    other = {key: field.default for key, field in MethodConfig.model_fields.items() if key not in _ELSEWHERE}
    return texts + [
        f"{key} {markdown.written(value)}"
        for key, usual in other.items()
        if (value := getattr(method, key)) != usual
    ]


def _overview() -> str:
    rows = []
    for name, method in presets().items():
        section = markdown.anchor(family(name))
        about = markdown.linked(describe("method", name))
        rows.append((f"[`{name}`](#{section})", about, ", ".join(needs(method)) or "–"))
    return markdown.table(("method", "what it is", "needs, besides the forget set"), rows)


def _families() -> str:
    """A section per family in alphabetical order, methods without one last."""
    methods = sorted(presets().items(), key=lambda each: (family(each[0]) == OTHER, family(each[0]), each[0]))
    parts = []
    for heading, members in groupby(methods, key=lambda each: family(each[0])):
        listed = list(members)
        rows = [(f"`{n}`", "<br>".join(terms(m)) or "–", "<br>".join(training(m)) or "–") for n, m in listed]
        sources = "\n".join(f"- `{n}`: {markdown.linked(m.source)}" for n, m in listed if m.source)
        parts.append(f"### {heading}\n\n{markdown.table(('method', 'terms', 'training'), rows)}\n\n{sources}")
    return "\n\n".join(parts)


def family(name: str) -> str:
    """Return the family that a method's file names in a comment `# family: …`."""
    return comment("method", name, "family") or OTHER


def _functions(kind: Kind) -> str:
    rows = []
    for name in kind.names():
        function = kind.find(name, name)
        module: Any = inspect.getmodule(function)
        looks_at = markdown.positional(function)
        if "batch_mean" in looks_at:
            looks_at += [need for need in markdown.positional(module.batch_mean) if need not in looks_at]
        cells = [f"`{name}`", f"{markdown.summary(module)}<br>{markdown.summary(function)}"]
        cells.append(", ".join(f"`{need}`" for need in looks_at))
        if kind is OBJECTIVES:
            returns = inspect.signature(function, eval_str=True).return_annotation
            cells.append({"N": "token", "B": "example"}[returns.dim_str.strip()])
        rows.append((*cells, markdown.keywords(function)))
    per = ["averaged per"] if kind is OBJECTIVES else []
    return markdown.table((kind.word, "what it is", "statistics", *per, "hyper-parameters"), rows)


def _statistics() -> str:
    rows = [(f"`{each.name}`", each.explanation, f"[{each.shape}]") for each in STATISTICS.values()]
    return markdown.table(("parameter", "what it is", "shape"), rows)


def _rules() -> str:
    rows = []
    for name in RULES.names():
        rule = RULES.find(name, name)
        rows.append((f"`{name}`", markdown.summary(rule), markdown.keywords(rule)))
    return markdown.table(("rule", "what it does", "options"), rows)


def _interventions() -> str:
    kinds = [INTERVENTIONS.find(name, name) for name in INTERVENTIONS.names()]
    return "\n\n".join(
        f"**`{kind.name}`** {markdown.summary(kind)}\n\n{markdown.options(kind.Options)}" for kind in kinds
    )


def _unset(edit: Mapping[str, Any]) -> list[str]:
    """Options that the user of the preset must set."""
    name = edit.get("name")
    fields = {} if name is None else INTERVENTIONS.find(name, name).Options.model_fields
    return [key for key, field in fields.items() if field.is_required() and key not in edit]


def _scaled() -> str:
    scales = {name: values_of("model", name).get("lr_scale", 1) for name in groups()["model"]}
    return ", ".join(f"`model={name}` has {scale:g}" for name, scale in scales.items() if scale != 1)


def _term(keys: Mapping[str, Any]) -> str:
    objective, weighting = keys["objective"], keys.get("weighting")
    rest = {key: value for key, value in keys.items() if key not in ("objective", "weighting")}
    own = markdown.call({"name": objective, **rest})
    if weighting is None:
        return own
    return f"{own} × {markdown.call({'name': weighting} if isinstance(weighting, str) else weighting)}"
