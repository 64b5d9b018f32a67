"""Split text into words, by one tokenizer for each set of true answers.

`rouge-score` is the tokenizer of the package of that name, which published figures use. It knows only the
letters a–z and digits: it splits `Müller` in two, and keeps only the digits of a Chinese or Russian text.
`unicode` splits text of any script; in scripts without spaces each character is a word. Both give the same
words of a–z and digits, and the same stems.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from typing import Literal, TypeAlias

import regex
from rouge_score.tokenize import tokenize

Choice: TypeAlias = Literal["auto", "rouge-score", "unicode"]

# Share of the letters and digits of all true answers that rouge-score may drop: English has few accents, in
# names. (TOFU's sets have up to 0.6 %; Italian 1.2 %, German 1.7 %, Spanish 2 %.)
_DROPPED = 0.0075
_DROPPED_OF_ONE = 0.5  # and of a single answer

# Scripts without spaces: of East Asia, and those of South East Asia that Unicode's line breaking leaves to
# dictionaries (Thai, Lao, Khmer, Myanmar …). Their digits are numbers like others.
_UNSPACED = (
    r"[[\p{scx=Han}\p{scx=Hiragana}\p{scx=Katakana}\p{Bopomofo}\p{Yi}\p{LB=SA}&&[\p{L}\p{N}\p{M}]]--\p{Nd}]"
)
_CHARACTER = rf"(?=[{_UNSPACED}--\p{{M}}])\X\p{{M}}*"
_SYMBOL = r"(?=[\p{So}\p{Extended_Pictographic}\p{Regional_Indicator}])\X"
_RUN = rf"[[\p{{L}}\p{{N}}]--{_UNSPACED}][[\p{{L}}\p{{N}}\p{{M}}]--{_UNSPACED}]*"
_WORD = regex.compile(f"{_CHARACTER}|{_RUN}|{_SYMBOL}", regex.V1)
_SPACED = regex.compile(rf"{_CHARACTER}\p{{P}}*|[^{_UNSPACED}]+|.", regex.V1 | regex.DOTALL)
_ISOLATED = regex.compile(_CHARACTER, regex.V1)
_LETTER = regex.compile(r"[\p{L}\p{N}\p{M}]", regex.V1)
_DROPPED_LETTER = regex.compile(r"[[\p{L}\p{N}\p{M}]--[A-Za-z0-9]]", regex.V1)
# Joiners, direction marks, variation selectors; not the zero-width space, which separates words.
_IGNORED = regex.compile(r"[\p{Default_Ignorable_Code_Point}--\u200b]", regex.V1)


@dataclass(frozen=True)
class Words:
    """A tokenizer of both true answers and generations, with the interface of rouge_score's."""

    name: Literal["rouge-score", "unicode"]
    stemmer: bool = True

    def tokenize(self, text: str) -> list[str]:
        """Return the words of a text without case; Porter stems of those of a–z, with `stemmer`."""
        stemmer = _stemmer() if self.stemmer else None
        if self.name == "rouge-score":
            words: list[str] = tokenize(text, stemmer)
            return words
        matches = _WORD.findall(_folded(text))
        if stemmer is None:
            return matches
        return [stemmer.stem(word) if len(word) > 3 and word.isascii() else word for word in matches]


def words_of(references: Iterable[str | None], choice: Choice = "auto", *, stemmer: bool = True) -> Words:
    """Choose the tokenizer of a set from its true answers, the same for all of them.

    `auto` is `rouge-score` for English, where few letters have accents, and else `unicode`: where rouge-score
    drops 3 in 400 of all letters and digits, half of those of one answer, or all that an answer has.
    """
    if choice != "auto":
        return Words(choice, stemmer)
    return Words("rouge-score" if _is_english(list(references)) else "unicode", stemmer)


def word_spans(text: str) -> list[tuple[int, int]]:
    """Return where each word of a text begins and ends, with its punctuation.

    Words are separated by white space; in scripts without spaces each character is one, with the punctuation
    after it.
    """
    return [
        (start.start() + part.start(), start.start() + part.end())
        for start in re.finditer(r"\S+", text)
        for part in _SPACED.finditer(start.group())
    ]


def isolated(text: str) -> str:
    """Put spaces around the characters of scripts without spaces, for tokenizers that need them."""
    return _ISOLATED.sub(r" \g<0> ", text)


def _folded(text: str) -> str:
    """Return a text in one form of each letter: composed, without case, without invisible characters."""
    plain = unicodedata.normalize("NFC", _IGNORED.sub("", text)).casefold()
    return unicodedata.normalize("NFC", plain)


def _is_english(references: Sequence[str | None]) -> bool:
    whole = dropped = 0
    for text in references:
        plain = unicodedata.normalize("NFC", text or "")
        letters, lost = len(_LETTER.findall(plain)), len(_DROPPED_LETTER.findall(plain))
        if lost > _DROPPED_OF_ONE * letters or (letters == 0 and _WORD.search(plain)):
            return False
        whole, dropped = whole + letters, dropped + lost
    return dropped <= _DROPPED * whole


class _Stemmer:
    """Porter stems with a cache: stemming takes most of the time of ROUGE."""

    def __init__(self) -> None:
        # nltk takes seconds to import, and the checks of a configuration do not need it.
        from nltk.stem.porter import PorterStemmer

        self.stem = lru_cache(1 << 16)(PorterStemmer().stem)


@cache
def _stemmer() -> _Stemmer:
    return _Stemmer()
