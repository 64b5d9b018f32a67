"""The papers behind methods and benchmarks: entries of papers.bib, by the number at arXiv."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

_NUMBER = re.compile(r"\b\d{4}\.\d{5}\b")
_EPRINT = re.compile(r"eprint = \{(.+?)\}")


def cited(text: str) -> list[str]:
    """Return the arXiv numbers in a text, each once, in order."""
    return list(dict.fromkeys(_NUMBER.findall(text)))


@cache
def entries() -> dict[str, str]:
    """Return the BibTeX entry of each known paper by its arXiv number."""
    text = Path(__file__).with_name("papers.bib").read_text(encoding="utf-8")
    return {_EPRINT.findall(entry)[0]: entry for entry in text.strip().split("\n\n")}


def bibtex(text: str, before: str = "") -> str:
    """Return the entries of the papers that a text cites, without those of a text before it; a link where
    there is no entry."""
    known, earlier = entries(), cited(before)
    return "\n\n".join(
        known.get(number, f"% https://arxiv.org/abs/{number} has no entry in papers.bib")
        for number in cited(text)
        if number not in earlier
    )
