"""Write the table of configuration groups in README.md: `make docs`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from launch.config_groups import CONFIGS, groups
from launch.report import markdown
from launch.report.methods_page import family

PAGE = CONFIGS.parent / "README.md"
START, END = "<!-- written by `make docs` from configs/ -->\n", "<!-- end -->"


def page() -> str:
    """Return README.md with its table as the folders of configs/ are."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    rows = [(f"`{group}`", _options(group, options)) for group, options in groups(own=False).items()]
    return f"{before}{START}{markdown.table(('group', 'options'), rows)}\n{END}{after}"


def _options(group: str, options: Sequence[str]) -> str:
    """Return the options; of methods, which are many, the families with a link to each."""
    if group != "method":
        return ", ".join(f"`{option}`" for option in options)
    counts = sorted(Counter(map(family, options)).items())
    families = ", ".join(f"[{name}](docs/methods.md#{markdown.anchor(name)}) ({n})" for name, n in counts)
    return f"{len(options)} presets: {families}"
