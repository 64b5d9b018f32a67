"""Hooks of mkdocs (`mkdocs.yml`): pages of the repository's root, and links that leave docs/."""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from typing import Any

ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
}
"""Files of the root that are pages of the site, and their names there."""
_LINK = re.compile(r"\[([^\]]*)\]\(([^)#\s]*)(#[^)\s]*)?\)")
_TITLED_FENCE = re.compile(r"^(\s*```\w+) ([^\s=]+)$", re.MULTILINE)


def on_files(files: Any, config: Any) -> Any:
    """Add the pages of the root."""
    from mkdocs.structure.files import File

    root = Path(config.config_file_path).parent
    for name, page in ROOT_PAGES.items():
        text = (root / name).read_text(encoding="utf-8")
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """Rewrite the links of a page for the site, and titles of code blocks for its highlighter."""
    here = next((name for name, target in ROOT_PAGES.items() if target == page.file.src_uri), None)
    at_root = here is not None
    return _TITLED_FENCE.sub(r'\1 title="\2"', rewritten(markdown, at_root=at_root))


def rewritten(markdown: str, *, at_root: bool) -> str:
    """Return a page with links that hold on the site.

    A link to a page of the root leads to its name there. A link to another file of the repository, which is
    not on the site, becomes its text.
    """

    def replace(match: re.Match[str]) -> str:
        text, target, anchor = match[1], match[2], match[3] or ""
        if not target or re.match(r"[a-z]+:", target):
            return match[0]
        inside = _from_docs(target, at_root=at_root)
        return text if inside is None else f"[{text}]({inside}{anchor})"

    return _LINK.sub(replace, markdown)


def _from_docs(target: str, *, at_root: bool) -> str | None:
    """Return a link target relative to docs/, None where it is not on the site."""
    parts = PurePosixPath(target).parts
    if at_root:
        if parts[0] == "docs":
            return "/".join(parts[1:])
        return ROOT_PAGES.get(target)
    return ROOT_PAGES.get("/".join(parts[1:])) if parts[0] == ".." else target
