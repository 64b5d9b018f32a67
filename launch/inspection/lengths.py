"""Check the lengths of texts in tokens against `dataset.max_length` and the model's positions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import TypeVar

from launch.inspection.texts import Prompt, Text, Texts
from unlearn.data.prompts import PromptFormat
from unlearn.data.tokenization import Encoder
from unlearn.models.locate import ModelError

T = TypeVar("T")

_UNCUT = 1 << 30
_SPECIAL = 16  # tokens that a text can have in addition to one per byte
_BATCH = 2048  # texts tokenised in one call


@dataclass(frozen=True)
class Lengths:
    """Checks lengths of texts in tokens against `max_length` and the model's `positions` (None: unknown).

    `label` names the model in messages.
    """

    encoder: Encoder
    max_length: int
    positions: int | None
    label: str

    def check(self, texts: Texts) -> list[str]:
        """Return warnings about texts that are cut or exceed the model's positions.

        Raises:
            ModelError: a sequence is longer than the number of learned position embeddings.
            DataError: a training prompt leaves no room for its answer.
        """
        overhead = 0
        if texts.prompted():
            overhead = len(self.encoder.format.prompt(self.encoder.tokenizer, "x").encode())
        trained = [text for text in texts.trained if not text.plain]  # plain texts are split into chunks
        self._refuse_full(self._long(trained, overhead))
        long = [*self._long(trained, overhead), *self._long(texts.scored, overhead)]
        warnings = [*self._cut(long), *self._shortened(long)]
        self._sampled(texts.sampled, overhead)
        return warnings + self._answers(texts.generated, overhead)

    def _long(self, texts: Iterable[Text], overhead: int) -> list[tuple[Text, int, int]]:
        """Return texts that may be too long, each with the lengths of its prompt and of the whole."""
        room = self.max_length if self.positions is None else min(self.max_length, self.positions)
        lengths: list[tuple[Text, int, int]] = []
        for raw in (False, True):
            candidates = [
                text
                for text in texts
                if text.raw is raw
                and text.answer.strip()
                and _bytes(text.question, text.answer) + (0 if raw or text.plain else overhead) > room
            ]
            encoder = self._unlimited(raw)
            for batch in batches(candidates):
                sequences = encoder.pairs([text.pair for text in batch])
                lengths += [(t, s.answer_start, len(s.ids)) for t, s in zip(batch, sequences, strict=True)]
        return lengths

    def _refuse_full(self, lengths: Sequence[tuple[Text, int, int]]) -> None:
        for text, start, _ in lengths:
            if start >= self.encoder.max_length:
                self.encoder.pairs([text.pair])  # raises the DataError

    def _cut(self, lengths: Sequence[tuple[Text, int, int]]) -> list[str]:
        """Warn of sequences beyond the model's positions; refuse them where positions are learned."""
        if self.positions is None or not lengths:
            return []
        text, _, length = max(lengths, key=lambda each: min(each[2], self.max_length))
        length = min(length, self.max_length)
        if length <= self.positions:
            return []
        start = f"dataset.max_length={self.max_length}: {text.where} has {length} tokens, and {self.label} "
        if self.encoder.limits.positions is not None:
            raise ModelError(
                f"{start}has positions for {self.positions} only (max_position_embeddings): set "
                f"dataset.max_length={self.positions} to cut longer texts, shorten the texts, or choose "
                "a model with more positions"
            )
        return [
            f"{start}was trained with {self.positions} (max_position_embeddings): set "
            f"dataset.max_length={self.positions} to cut longer texts"
        ]

    def _shortened(self, lengths: Sequence[tuple[Text, int, int]]) -> list[str]:
        """Warn of answers whose end is cut; plain texts are cut into pieces, or on purpose."""
        cut = {
            text.pair: (length, text.where)
            for text, _, length in lengths
            if length > self.max_length and not text.plain
        }
        if not cut:
            return []
        length, where = max(cut.values())
        return [
            f"dataset.max_length={self.max_length}: {len(cut)} answers are longer with their prompts (up to "
            f"{length} tokens, {where}); their ends are neither trained on nor scored"
        ]

    def _answers(self, prompts: Iterable[Prompt], overhead: int) -> list[str]:
        """Warn of prompts after which the model has too few positions for an answer of full length."""
        if self.positions is None:
            return []
        short = [each for each in self._prompts(prompts, overhead) if each[1] + each[0].new > self.positions]
        if not short:
            return []
        longest, length = max(short, key=lambda each: each[1])
        what = "leaves no room" if length >= self.positions else f"leaves room for {self.positions - length}"
        return [
            f"eval.max_new_tokens={longest.new}: a prompt of {longest.where} has {length} tokens and {what} "
            f"in the {self.positions} positions of {self.label}; {len(short)} answers are cut or empty"
        ]

    def _sampled(self, prompts: Iterable[Prompt], overhead: int) -> None:
        if self.encoder.limits.positions is None or self.positions is None:
            return
        for each, length in self._prompts(prompts, overhead):
            if length >= self.positions:
                raise ModelError(
                    f"method.alternatives.prompt: a prompt has {length} tokens and leaves no room for "
                    f"answers in the {self.positions} positions of {self.label}: shorten or replace it"
                )
            if length + each.new > self.positions:
                raise ModelError(
                    f"method.alternatives.max_new_tokens={each.new}: a prompt has {length} tokens, and "
                    f"{self.label} has {self.positions} positions: set it to at most "
                    f"{self.positions - length}"
                )

    def _prompts(self, prompts: Iterable[Prompt], overhead: int) -> Iterator[tuple[Prompt, int]]:
        """Yield prompts that may be too long, with their lengths."""
        assert self.positions is not None
        for raw in (False, True):
            extra = 0 if raw else overhead
            candidates = [
                each
                for each in prompts
                if each.raw is raw and _bytes(each.question) + each.new + extra > self.positions
            ]
            for batch in batches(candidates):
                encoded = self._unlimited(raw).prompts([each.question for each in batch])
                yield from ((each, len(ids)) for each, ids in zip(batch, encoded, strict=True))

    def _unlimited(self, raw: bool) -> Encoder:
        """Return the encoder without a length limit."""
        form = PromptFormat("{question}", end=self.encoder.format.end) if raw else self.encoder.format
        return replace(self.encoder, format=form, max_length=_UNCUT)


def _bytes(*texts: str) -> int:
    """Bound the number of tokens: at most one per byte, plus special tokens."""
    return sum(len(text.encode()) for text in texts) + _SPECIAL


def batches(items: Iterable[T]) -> Iterator[list[T]]:
    """Yield the items in lists that are small enough for one tokenizer call."""
    rest = iter(items)
    while batch := list(islice(rest, _BATCH)):
        yield batch
