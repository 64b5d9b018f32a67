"""Write docs/presets.md from the YAMLs of configs/: `make docs`."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser

from launch.config_groups import CONFIGS, describe, groups, values_of
from launch.report import markdown

PAGE = CONFIGS.parent / "docs" / "presets.md"
_HEAD = """\
<!-- Made by `make docs` from the YAMLs of configs/: edit those. -->
# Presets

Every option of every group, `group=option`, each a YAML in `configs/<group>/`. An option sets keys of the
[configuration](configuration.md); what the command line says goes before it. Options of your own, in a folder
`configs` of the working directory, work the same ([extend](extend.md)).
"""
_ABOUT = {
    "method": "Terms, values and sources of each: [methods](methods.md).",
    "experiment": "A whole study: with `-m` its runs are made. What is swept may be narrowed or changed on "
    "the command line; see [recipes](sweeps.md#recipes).",
    "hydra/launcher": "Where the runs of a sweep are made (`-m`); without it one after the other.",
    "hydra/sweeper": "How the runs of a sweep are chosen (`-m`); without it every combination is made. See "
    "[searching](sweeps.md#searching-instead-of-sweeping).",
    "hydra/sweeper/sampler": "What chooses the trials of a search. `hydra.sweeper.sampler.seed` and other "
    "options are those of Optuna's class.",
}
_LONGEST = 160  # characters of what an experiment sweeps over, of one key


def page() -> str:
    """Return the page as Markdown."""
    hydra: dict[str, list[str]] = {}
    for file in sorted((CONFIGS / "hydra").rglob("*.yaml")):
        hydra.setdefault(str(file.parent.relative_to(CONFIGS)), []).append(file.stem)
    parts = [_HEAD]
    for group, options in {**groups(own=False), **hydra}.items():
        about = f"{_ABOUT[group]}\n\n" if group in _ABOUT else ""
        parts.append(f"## {group}\n\n{about}{_table(group, options)}\n")
    return "\n".join(parts)


def _table(group: str, options: list[str]) -> str:
    rows = [
        [
            f'<a id="{group.replace("/", "-")}-{option}"></a>`{option}`',
            markdown.linked(describe(group, option)),
        ]
        for option in options
    ]
    if group != "experiment":
        return markdown.table(("option", "what it is"), rows)
    sweeps = [[*row, swept(values_of(group, option))] for row, option in zip(rows, options, strict=True)]
    return markdown.table(("option", "what it is", "runs with `-m`"), sweeps)


def swept(experiment: Mapping[str, Any]) -> str:
    """Write how many runs an experiment makes, and of which values; "–" for a single one."""
    sweeper = experiment.get("hydra", {}).get("sweeper", {})
    parser = OverridesParser.create()
    counts, lines = [], []
    for key, text in sweeper.get("params", {}).items():
        override = parser.parse_override(f"{key}={' '.join(str(text).split())}")
        name = key.lstrip("+")
        if not override.is_choice_sweep():
            lines.append(f"`{name}`: `{text}`")
            continue
        values = list(override.sweep_string_iterator())
        counts.append(len(values))
        listed = ", ".join(f"`{value}`" for value in values)
        lines.append(f"`{name}`: {listed if len(listed) <= _LONGEST else f'{len(values)} values'}")
    runs = sweeper.get("n_trials") or math.prod(counts)
    return "<br>".join([f"{runs} {'trials' if 'n_trials' in sweeper else 'runs'}", *lines]) if lines else "–"
