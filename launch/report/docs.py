"""Write the generated pages of docs/ and README's table of groups from code and presets.

`python -m launch.report.docs`, or `make docs`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from launch.report import (
    command_line_page,
    configuration_page,
    groups_table,
    methods_page,
    metrics_page,
    presets_page,
)
from unlearn.guard import tool

PAGES = (command_line_page, configuration_page, groups_table, methods_page, metrics_page, presets_page)
"""The modules that make a page: `page()` returns it, `PAGE` is its file."""


@tool
def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `python -m launch.report.docs`."""
    argparse.ArgumentParser(prog="python -m launch.report.docs", description=__doc__).parse_args(arguments)
    for module in PAGES:
        module.PAGE.write_text(module.page(), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
