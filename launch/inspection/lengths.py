"""Lengths of texts in tokens, against `dataset.max_length` and the positions of the model."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from launch.inspection.texts import Asked, Text, Texts
from unlearn.data.prompts import PromptFormat
from unlearn.data.tokenization import Encoder
from unlearn.models.locate import ModelError

T = TypeVar("T")

_UNCUT = 1 << 30
_SPECIAL = 16  # tokens that a text can have beside one for each byte
_AT_ONCE = 2048  # texts tokenised together


@dataclass(frozen=True)
class Lengths:
    """Lengths of texts in tokens against `max_length` and the model's `most` positions, where it names any.

    `label` names the model in messages.
    """

    encoder: Encoder
    max_length: int
    most: int | None
    label: str

    def check(self, texts: Texts) -> list[str]:
        """
        Raises:
            ModelError: a sequence is longer than the positions that the model has learned.
            DataError: a prompt that is trained on leaves no room for its answer.
        """
        overhead = 0
        if texts.prompted():
            overhead = len(self.encoder.format.prompt(self.encoder.tokenizer, "x").encode())
        trained = [text for text in texts.trained if not text.plain]  # plain texts are cut in pieces
        self._refuse_full(self._long(trained, overhead))
        warnings = self._cut([*self._long(trained, overhead), *self._long(texts.scored, overhead)])
        self._sampled(texts.sampled, overhead)
        return warnings + self._answers(texts.asked, overhead)

    def _long(self, texts: Iterable[Text], overhead: int) -> list[tuple[Text, int, int]]:
        """The texts that may be too long, with the lengths of their prompts and of the whole."""
        room = self.max_length if self.most is None else min(self.max_length, self.most)
        found: list[tuple[Text, int, int]] = []
        for raw in (False, True):
            some = [
                text
                for text in texts
                if text.raw is raw
                and text.answer.strip()
                and _bytes(text.question, text.answer) + (0 if raw or text.plain else overhead) > room
            ]
            encoder = self._free(raw)
            for part in portions(some):
                sequences = encoder.pairs([text.pair for text in part])
                found += [(t, s.answer_start, len(s.ids)) for t, s in zip(part, sequences, strict=True)]
        return found

    def _refuse_full(self, lengths: Sequence[tuple[Text, int, int]]) -> None:
        for text, start, _ in lengths:
            if start >= self.encoder.max_length:
                self.encoder.pairs([text.pair])  # raises what is said of it

    def _cut(self, lengths: Sequence[tuple[Text, int, int]]) -> list[str]:
        """Warnings about what is beyond the positions; refused where these are learned."""
        if self.most is None or not lengths:
            return []
        text, _, length = max(lengths, key=lambda each: min(each[2], self.max_length))
        length = min(length, self.max_length)
        if length <= self.most:
            return []
        said = f"dataset.max_length={self.max_length}: {text.where} has {length} tokens, and {self.label} "
        if self.encoder.limits.positions is not None:
            raise ModelError(
                f"{said}has positions for {self.most} only (max_position_embeddings): set "
                f"dataset.max_length={self.most} to cut what is longer, shorten the texts, or take "
                "a model with more positions"
            )
        return [
            f"{said}was made for {self.most} (max_position_embeddings): set dataset.max_length={self.most} "
            "to cut what is longer"
        ]

    def _answers(self, asked: Iterable[Asked], overhead: int) -> list[str]:
        """A warning where the model has no room for all tokens that an answer may have."""
        if self.most is None:
            return []
        short = [each for each in self._prompts(asked, overhead) if each[1] + each[0].new > self.most]
        if not short:
            return []
        first, length = max(short, key=lambda each: each[1])
        what = "leaves no room" if length >= self.most else f"leaves room for {self.most - length}"
        return [
            f"eval.max_new_tokens={first.new}: a prompt of {first.where} has {length} tokens and {what} in "
            f"the {self.most} positions of {self.label}; {len(short)} answers are cut or cannot be given"
        ]

    def _sampled(self, asked: Iterable[Asked], overhead: int) -> None:
        if self.encoder.limits.positions is None or self.most is None:
            return
        for each, length in self._prompts(asked, overhead):
            if length >= self.most:
                raise ModelError(
                    f"method.alternatives.prompt: a prompt has {length} tokens and leaves no room for "
                    f"answers in {self.most} positions of {self.label}: make it shorter, or take another"
                )
            if length + each.new > self.most:
                raise ModelError(
                    f"method.alternatives.max_new_tokens={each.new}: a prompt has {length} tokens, and "
                    f"{self.label} has {self.most} positions: set it to {self.most - length} or less"
                )

    def _prompts(self, asked: Iterable[Asked], overhead: int) -> Iterator[tuple[Asked, int]]:
        """Those that may be too long, with the lengths of their prompts."""
        assert self.most is not None
        for raw in (False, True):
            some = [
                each
                for each in asked
                if each.raw is raw and _bytes(each.question) + each.new + (0 if raw else overhead) > self.most
            ]
            for part in portions(some):
                prompts = self._free(raw).prompts([each.question for each in part])
                yield from ((each, len(ids)) for each, ids in zip(part, prompts, strict=True))

    def _free(self, raw: bool) -> Encoder:
        """The encoder without a limit."""
        form = PromptFormat("{question}", end=self.encoder.format.end) if raw else self.encoder.format
        return replace(self.encoder, format=form, max_length=_UNCUT)


def _bytes(*texts: str) -> int:
    """No text has more tokens than bytes, but for special ones."""
    return sum(len(text.encode()) for text in texts) + _SPECIAL


def portions(items: Iterable[T]) -> Iterator[list[T]]:
    rest = iter(items)
    while some := list(islice(rest, _AT_ONCE)):
        yield some
