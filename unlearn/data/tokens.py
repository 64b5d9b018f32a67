"""From text to token sequences that know where the answer begins.

Question and answer are tokenised together, once; the boundary is found by character offsets. Tokenising
the prompt on its own and counting moves the boundary wherever a tokenizer merges across it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from unlearn.data.example import Example
from unlearn.data.pieces import pieces
from unlearn.errors import UserError

IntArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]


class DataError(UserError):
    """The data cannot be used as configured; the message names the example and the mend."""


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """`ids` [L]; the answer tokens, which carry loss, are `ids[answer_start:]`.

    `ended` tells whether the last of them is the end-of-sequence token (it is not when the text was cut).
    """

    ids: IntArray
    answer_start: int
    ended: bool

    @property
    def answer_length(self) -> int:
        return len(self.ids) - self.answer_start


@dataclass(frozen=True)
class PromptFormat:
    """How a question becomes the prompt: the tokenizer's chat template, or a plain template.

    `template` is a plain one such as `"Question: {question}\\nAnswer: "`; None means the chat template,
    rendered with the system message and the further `variables` (`date_string` of Llama 3). `end` is the
    text of the token that ends an answer; None means the tokenizer's end-of-sequence token.
    """

    template: str | None = None
    system: str | None = None
    end: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, tokenizer: PreTrainedTokenizerBase, question: str) -> str:
        """The text that comes before the answer's first character."""
        if self.template is not None:
            return self.template.replace("{question}", question)
        if tokenizer.chat_template is None:
            raise DataError(
                "this tokenizer has no chat template: set model.prompt.template to a plain one, "
                'such as "Question: {question}\\nAnswer: "'
            )
        messages = [{"role": "system", "content": self.system}] if self.system is not None else []
        messages.append({"role": "user", "content": question})
        text = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, **self.variables
        )
        assert isinstance(text, str)
        return text


@dataclass(frozen=True)
class Encoder:
    """Texts to token sequences, for one tokenizer, one prompt format and one length limit in tokens."""

    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat = PromptFormat()
    max_length: int = 512

    @property
    def end_id(self) -> int:
        """The id of the token that ends an answer."""
        if self.format.end is None:
            if self.tokenizer.eos_token_id is None:
                raise DataError("this tokenizer has no end-of-sequence token: set model.prompt.end")
            return int(self.tokenizer.eos_token_id)
        found = self.tokenizer.convert_tokens_to_ids(self.format.end)
        if not isinstance(found, int) or self.tokenizer.convert_ids_to_tokens(found) != self.format.end:
            raise DataError(f"model.prompt.end: {self.format.end!r} is not one token of this tokenizer")
        return found

    @property
    def pad_id(self) -> int:
        """What fills rows up; it matters only where the output at padding counts."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) else self.end_id

    @property
    def _specials(self) -> bool:
        # A chat template writes its own beginning-of-sequence token.
        return self.format.template is not None

    def pairs(self, pairs: Sequence[tuple[str | None, str]]) -> list[TokenSequence]:
        """Token sequences of (question, answer) pairs; a pair without a question is a plain text.

        Raises:
            DataError: an answer has no tokens, or the prompt alone fills `max_length`.
        """
        return [sequence for sequence, _ in self._encoded(pairs)]

    def important(
        self, pairs: Sequence[tuple[str | None, str]], spans: Sequence[Sequence[tuple[int, int]]]
    ) -> list[BoolArray]:
        """Which answer tokens share a character with one of the `spans` of their answer.

        One array [answer length] per sequence that `pairs` gives. A span is [start, end) in characters of
        the answer; the spaces at its edges do not count. The token that ends an answer is never marked.
        """
        marked = []
        for (sequence, offsets), (_, answer), own in zip(self._encoded(pairs), pairs, spans, strict=True):
            flags = np.zeros(sequence.answer_length, dtype=np.bool_)
            begin, end = offsets[sequence.answer_start : len(sequence.ids)].T
            for low, high in (_trimmed(answer, *span) for span in own):
                flags[: len(begin)] |= (begin < high) & (end > low) & (begin < end)
            if sequence.ended:
                flags[-1] = False
            marked.append(flags)
        return marked

    def _encoded(self, pairs: Sequence[tuple[str | None, str]]) -> list[tuple[TokenSequence, IntArray]]:
        """Each pair's sequence and the offsets of its tokens in the answer [L, 2], negative in the prompt.

        An end token that was added here has no offsets.
        """
        prompts = ["" if q is None else self.format.prompt(self.tokenizer, q) for q, _ in pairs]
        texts = [prompt + answer for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
        plain = [q is None for q, _ in pairs]
        rows: list[tuple[TokenSequence, IntArray] | None] = [None] * len(pairs)
        for is_plain in (False, True):
            where = [i for i, p in enumerate(plain) if p == is_plain]
            if not where:
                continue
            encoded = self.tokenizer(
                [texts[i] for i in where],
                add_special_tokens=is_plain or self._specials,
                return_offsets_mapping=True,
            )
            for i, ids, offsets in zip(where, encoded["input_ids"], encoded["offset_mapping"], strict=True):
                # Nothing predicts the first token, so no answer begins there.
                start = 1 if is_plain else max(1, _boundary(offsets, len(prompts[i])))
                places = np.array(offsets, dtype=np.int64).reshape(-1, 2) - len(prompts[i])
                rows[i] = self._sequence(ids, start, pairs[i]), places
        return [row for row in rows if row is not None]

    def prompts(self, questions: Sequence[str], openings: Sequence[str] | None = None) -> list[list[int]]:
        """Token ids of the prompts alone, to generate from; `openings` are how the answers begin already.

        Without the spaces at its end, of a plain template or an opening: they are part of the token after.
        """
        texts = [self.format.prompt(self.tokenizer, question) for question in questions]
        openings = [""] * len(texts) if openings is None else openings
        texts = [
            (text + opening).rstrip(" ") if opening or self.format.template is not None else text
            for text, opening in zip(texts, openings, strict=True)
        ]
        return [list(ids) for ids in self.tokenizer(texts, add_special_tokens=self._specials)["input_ids"]]

    def chunks(self, examples: Sequence[Example]) -> list[Example]:
        """The examples, plain texts longer than `max_length` tokens cut in pieces `<id>#0`, `<id>#1` …

        A piece on its own has at most `max_length` tokens, special ones included, and as a rule that many:
        then no end token follows where the text goes on. What fits, or has a question, stays as it is.

        Raises:
            UserError: not even one character of a text fits into `max_length`.
        """
        found: list[Example] = []
        for example in examples:
            text = example.answer
            parts = pieces(text, self.max_length, self._plain) if example.question is None else [text]
            if parts == [text] or not parts:
                found.append(example)
            else:
                found += [replace(example, id=f"{example.id}#{i}", answer=p) for i, p in enumerate(parts)]
        return found

    def _plain(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        encoded = self.tokenizer(text, return_offsets_mapping=True, verbose=False)
        return encoded["input_ids"], encoded["offset_mapping"]

    def _sequence(self, ids: Sequence[int], start: int, pair: tuple[str | None, str]) -> TokenSequence:
        if pair[1].strip() == "":
            raise DataError(f"an answer is empty (question: {_short(pair[0] or '')})")
        # Some tokenizers append the end of sequence themselves: keep one.
        whole = [*ids, self.end_id] if not ids or ids[-1] != self.end_id else list(ids)
        cut = whole[: self.max_length]
        if len(cut) <= start:
            raise DataError(
                f"the prompt alone has {start} tokens and fills dataset.max_length={self.max_length} "
                f"(text: {_short(pair[0] or pair[1])}); raise dataset.max_length"
            )
        return TokenSequence(np.asarray(cut, dtype=np.int64), start, ended=len(cut) == len(whole))


def _boundary(offsets: Sequence[tuple[int, int]], prompt_length: int) -> int:
    """Index of the first token that reaches into the answer; a token across the boundary belongs to it."""
    for position, (_, end) in enumerate(offsets):
        if end > prompt_length:
            return position
    return len(offsets)


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """The span without the white space at its edges: a token takes the space before its word along."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())


def _short(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[: width - 1] + "…")
