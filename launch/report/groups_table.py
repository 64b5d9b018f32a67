"""Write the table of configuration groups in README.md: `make docs`."""

from __future__ import annotations

from launch.config_groups import CONFIGS, groups
from launch.report import markdown

PAGE = CONFIGS.parent / "README.md"
START, END = "<!-- written by `make docs` from configs/ -->\n", "<!-- end -->"


def page() -> str:
    """Return README.md with its table as the folders of configs/ are."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    rows = [
        (f"`{group}`", ", ".join(f"`{option}`" for option in options))
        for group, options in groups(own=False).items()
    ]
    return f"{before}{START}{markdown.table(('group', 'options'), rows)}\n{END}{after}"
