"""Write the table of configuration groups in README.md: `python -m launch.report.groups_table`."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from launch.compose import CONFIGS, groups
from launch.report import markdown
from unlearn.guard import tool

PAGE = CONFIGS.parent / "README.md"
START, END = "<!-- written by `make docs` from configs/ -->\n", "<!-- end -->"


def page() -> str:
    """Return README.md with its table as the folders of configs/ are."""
    before, _, rest = PAGE.read_text(encoding="utf-8").partition(START)
    _, _, after = rest.partition(END)
    rows = [
        (f"`{group}`", ", ".join(f"`{option}`" for option in options)) for group, options in groups().items()
    ]
    return f"{before}{START}{markdown.table(('group', 'options'), rows)}\n{END}{after}"


@tool
def main(_: Sequence[str] | None = None) -> None:
    """Entry point of `python -m launch.report.groups_table`."""
    PAGE.write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
