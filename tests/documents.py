"""What the documents of the repository name: commands, options, metrics."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.paths import ROOT

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
_SHELL = re.compile(r"^ *```(?:bash|sh)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_INDENTED = re.compile(r"(?:^ {4,}\S.*\n)+", re.MULTILINE)
_INLINE = re.compile(r"`((?:unlearn|python -m) [^`]*)`")
_COMMAND = re.compile(r"(?:srun .*? )?(?:\.venv/bin/)?(unlearn|python -m \S+)(?=\s|$)")


@cache
def text(page: Path) -> str:
    return page.read_text(encoding="utf-8")


def fences(page: Path, language: str) -> list[str]:
    """Return the blocks of code of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text(page), re.DOTALL)


def commands(program: str) -> list[str]:
    """Return every distinct command of a program (`unlearn`, or `python -m` for all modules) in the pages.

    Those of shell blocks, of indented lines and of inline code, with lines joined. The commands of
    CONTRIBUTING.md are run by tests/test_add_one.py, with the plug-ins that it has.
    """
    lines = (line for page in PAGES if page.name != "CONTRIBUTING.md" for line in _lines(text(page)))
    matched = ((match, line) for line in lines if (match := _COMMAND.match(line)) is not None)
    found = [line[m.start(1) :] for m, line in matched if m[1].startswith(program)]
    return list({tuple(words(command)): command for command in reversed(found)}.values())


def _lines(page: str) -> Iterator[str]:
    prose = _FENCE.sub("", page)
    for block in [*_SHELL.findall(page), *_INDENTED.findall(prose)]:
        yield from (line.strip() for line in re.sub(r"\\\n\s*", " ", block).splitlines())
    yield from (" ".join(span.split()) for span in _INLINE.findall(prose))


def words(command: str) -> list[str]:
    """Return the arguments of a command, without comments and without what stands for something else."""
    given = shlex.split(command.replace(r"\$", "$"), comments=True)  # as a shell reads it in double quotes
    return [word for word in given if not re.search(r"…|=NAME$|^\.\.\.$", word)]


def inline_code() -> Iterator[tuple[str, str]]:
    """Yield what is in backticks in the prose of each page, with the page's name.

    Without the first cells of the tables of docs/from-openunlearning.md: they have that project's names.
    """
    for page in PAGES:
        prose = _FENCE.sub("", text(page))
        if page.stem == "from-openunlearning":
            prose = re.sub(r"^\|[^|]*\|", "", prose, flags=re.MULTILINE)
        for paragraph in prose.split("\n\n"):
            for span in re.findall(r"`([^`]+)`", paragraph):
                if not span.startswith(("…", "python ")):  # commands of other programs
                    yield page.name, " ".join(span.split())
