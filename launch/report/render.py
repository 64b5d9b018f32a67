"""Render the HTML pages from their templates, with charts that plotly.js draws."""

from __future__ import annotations

import base64
import gzip
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from plotly.offline import get_plotlyjs

from eval.metric_catalog import info
from launch.redact import cleaned
from launch.report.documentation import about, link
from launch.report.results_table import format_value
from launch.report.sections import note
from launch.report.traces import Figure, label


def render(
    template: str, values: Mapping[str, Any], sections: Mapping[str, Sequence[Figure]], *, clean: bool = False
) -> str:
    """Return the page of a template.

    sections: charts by the name of their place in the template.
    clean: remove the home directory and secrets from values and charts. They cannot be removed from the page,
        since its packed script must stay as it is.
    """
    figures = {
        f"{name}-{i}": _finite(asdict(figure))
        for name, group in sections.items()
        for i, figure in enumerate(group)
    }
    data = {**values, "figures": figures}
    return (
        _environment()
        .get_template(template)
        .render(
            **(cleaned(data) if clean else data),
            sections={name: [key for key in figures if key.startswith(f"{name}-")] for name in sections},
            plotly=_packed_plotly() if figures else "",
        )
    )


def _finite(value: Any) -> Any:
    """Replace NaN and infinity, which are not JSON, by None: a gap in the line."""
    if isinstance(value, dict):
        return {key: _finite(part) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(part) for part in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@cache
def _packed_plotly() -> str:
    """Return plotly.js, 4.8 MB, as 2 MB of base64 that the page decompresses itself."""
    return base64.b64encode(gzip.compress(get_plotlyjs().encode(), mtime=0)).decode()


@cache
def _environment() -> Environment:
    """Return the environment of the templates, with their filters and functions."""
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    templates = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    templates.filters |= {"value": format_value, "direction": lambda key: info(key).direction, "label": label}
    templates.globals |= {
        "slug": lambda role: role.replace(" ", "-"),
        "note": note,
        "docs": link,
        "about": about,
    }
    return templates
