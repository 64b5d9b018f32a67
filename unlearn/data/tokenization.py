"""Tokenise texts into sequences with the position where the answer begins.

Question and answer are tokenised together, once; character offsets locate the boundary. Counting the tokens
of the prompt alone would misplace it where a tokenizer merges across the boundary.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from unlearn.data.example import Example
from unlearn.data.pieces import pieces
from unlearn.data.prompts import DataError, PromptFormat
from unlearn.errors import did_you_mean, quoted

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "BoolArray",
    "DataError",
    "Encoder",
    "IntArray",
    "Limits",
    "PromptFormat",
    "TokenSequence",
    "added",
]

IntArray = np.ndarray[Any, np.dtype[np.int64]]
BoolArray = np.ndarray[Any, np.dtype[np.bool_]]

_PORTION = 256  # texts encoded at a time: a tokenizer's output takes many times the memory of the tokens


@dataclass(frozen=True, slots=True)
class TokenSequence:
    """`ids` [L]; the answer tokens, which carry loss, are `ids[answer_start:]`.

    `ended`: whether the last token is the end-of-sequence token (it is not where the text was cut).
    """

    ids: IntArray
    answer_start: int
    ended: bool

    @property
    def answer_length(self) -> int:
        return len(self.ids) - self.answer_start

    def with_suffix(self, tokens: Sequence[int], longest: int | None = None) -> TokenSequence:
        """Return the sequence with these tokens after the prompt, cut to `longest` tokens."""
        ids = np.insert(self.ids, self.answer_start, tokens)
        ended = self.ended and (longest is None or len(ids) <= longest)
        return TokenSequence(ids[:longest], self.answer_start + len(tokens), ended)


@dataclass(frozen=True)
class Limits:
    """Limits of a model: token ids are below `vocabulary`, and `positions` is the number of learned position
    embeddings. None: unknown, or no limit.
    """

    vocabulary: int | None = None
    positions: int | None = None


_CHAT = PromptFormat()


@dataclass(frozen=True)
class Encoder:
    """Encodes texts as token sequences, with one tokenizer, one prompt format and one length limit in tokens.

    Special tokens that the tokenizer adds before a text stay, once. Those that it adds after a text are left
    out: an answer follows a prompt, and an answer ends with `end_id` alone. `limits` are the model's. Of a
    plain text the share `prompt_share` of its tokens, and the first one at least, is the prompt.

    `suffix` are tokens that follow each prompt, before the answer or its opening. They do not count in
    `max_length`, and plain texts have none.
    """

    tokenizer: PreTrainedTokenizerBase
    format: PromptFormat = _CHAT
    max_length: int = 512
    limits: Limits = Limits()
    prompt_share: float = 0.0
    suffix: tuple[int, ...] = ()

    @property
    def end_id(self) -> int:
        """Id of the token that ends an answer.

        Raises:
            DataError: the tokenizer has no such token.
        """
        if self.format.end is None:
            if self.tokenizer.eos_token_id is None:
                raise DataError("this tokenizer has no end-of-sequence token: set model.prompt.end")
            return int(self.tokenizer.eos_token_id)
        end = self.format.end
        token = self.tokenizer.convert_tokens_to_ids(end)
        if isinstance(token, int) and self.tokenizer.convert_ids_to_tokens(token) == end:
            return token
        ids = self.tokenizer(end, add_special_tokens=False)["input_ids"]
        if len(ids) == 1 and self.tokenizer.decode(ids) == end:  # such as a line break, spelt Ċ in tokens
            return int(ids[0])
        near = did_you_mean(end, map(str, self.tokenizer.added_tokens_decoder.values()))
        raise DataError(f"model.prompt.end: {end!r} is not one token of this tokenizer{near}")

    @property
    def pad_id(self) -> int:
        """Id of the padding token; it matters only where the output at padding counts."""
        pad = self.tokenizer.pad_token_id
        return pad if isinstance(pad, int) and self._known(pad) else self.end_id

    @property
    def before(self) -> Sequence[int]:
        """The special tokens that the tokenizer adds before a text."""
        return self._added[0]

    def followed_by(self, tokens: Sequence[int]) -> Encoder:
        """Return this encoder with these tokens after each prompt."""
        return replace(self, suffix=tuple(tokens))

    def notes(self) -> list[str]:
        """Return notes on how the tokenizer's special tokens are handled, one sentence each."""
        front, back = (self.tokenizer.convert_ids_to_tokens(ids) for ids in self._added)
        pad = self.tokenizer.pad_token_id
        notes = []
        if front:
            where = "plain texts and prompts" if self._specials else "plain texts (prompts have their own)"
            notes.append(f"tokenizer: {' '.join(front)} is added before {where}")
        if back:
            notes.append(f"tokenizer: {' '.join(back)}, which it adds after a text, is left out")
        if isinstance(pad, int) and pad != self.pad_id:
            token = self.tokenizer.pad_token
            notes.append(
                f"tokenizer: the padding token {token} (id {pad}) is beyond the model's vocabulary of "
                f"{self.limits.vocabulary}; rows are padded with the end token"
            )
        return notes

    @property
    def _specials(self) -> bool:
        # A chat template writes its own beginning-of-sequence token.
        return self.format.template is not None

    @cached_property
    def _added(self) -> tuple[list[int], list[int]]:
        return added(self.tokenizer)

    def _known(self, token: int) -> bool:
        return self.limits.vocabulary is None or token < self.limits.vocabulary

    def _tokenised(
        self, texts: Sequence[str], *, specials: bool
    ) -> Iterator[tuple[list[int], list[tuple[int, int]]]]:
        """Yield ids and offsets of each text; with `specials`, the special tokens before a text are added.

        Raises:
            DataError: a token is beyond the model's vocabulary.
        """
        front = self._added[0] if specials else []
        for begin in range(0, len(texts), _PORTION):
            portion = list(texts[begin : begin + _PORTION])
            encoded = self.tokenizer(
                portion, add_special_tokens=False, return_offsets_mapping=True, verbose=False
            )
            for ids, offsets in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
                if self.limits.vocabulary is not None and max(ids, default=0) >= self.limits.vocabulary:
                    raise DataError(self.beyond_vocabulary(max(ids)))
                before = [] if ids[: len(front)] == front else front
                yield [*before, *ids], [(0, 0)] * len(before) + list(offsets)

    def beyond_vocabulary(self, token: int) -> str:
        """Return the message for a token that the model has no embedding for."""
        return (
            f"the tokenizer's token {self.tokenizer.convert_ids_to_tokens(token)!r} has id {token}, and the "
            f"model has embeddings for {self.limits.vocabulary} tokens only: use the model's own tokenizer, "
            "or enlarge the embeddings once with transformers (resize_token_embeddings, then save_pretrained)"
        )

    def pairs(
        self,
        pairs: Sequence[tuple[str | None, str]],
        openings: Sequence[str] | None = None,
        continued: Sequence[bool] | None = None,
    ) -> list[TokenSequence]:
        """Encode (question, answer) pairs; a pair without a question is a plain text.

        openings: beginnings of the answers that follow the prompts and are part of them. continued: whether
        the text goes on after the answer, so that no end token follows.

        Raises:
            DataError: an answer has no tokens, or the prompt alone fills `max_length`.
        """
        return [sequence for sequence, _ in self._encoded(pairs, openings, continued)]

    def answers(self, examples: Sequence[Example]) -> list[TokenSequence]:
        """Encode examples with their own answers, openings and ends; raises as `pairs`."""
        pairs = [(e.question, e.answer) for e in examples]
        return self.pairs(pairs, [e.opening for e in examples], [e.continues for e in examples])

    def possible_pairs(
        self, pairs: Sequence[tuple[str | None, str]]
    ) -> tuple[list[TokenSequence | None], dict[int, str]]:
        """Encode pairs as `pairs` does; return None and a problem by its number for each that cannot be."""
        try:
            return [*self.pairs(pairs)], {}
        except DataError:  # encode one by one, to learn which of them fail
            sequences: list[TokenSequence | None] = []
            problems: dict[int, str] = {}
        for number, pair in enumerate(pairs):
            try:
                sequences += self.pairs([pair])
            except DataError as error:
                sequences.append(None)
                problems[number] = str(error)
        return sequences, problems

    def important(
        self,
        pairs: Sequence[tuple[str | None, str]],
        spans: Sequence[Sequence[tuple[int, int]]],
        openings: Sequence[str] | None = None,
        continued: Sequence[bool] | None = None,
    ) -> list[BoolArray]:
        """Mark the answer tokens that share a character with one of the `spans` of their answer.

        Returns one array [answer length] per sequence of `pairs`. A span is [start, end) in characters of
        the answer; the spaces at its edges do not count. The token that ends an answer is never marked.
        """
        marked = []
        encoded = self._encoded(pairs, openings, continued)
        for (sequence, offsets), (_, answer), own in zip(encoded, pairs, spans, strict=True):
            flags = np.zeros(sequence.answer_length, dtype=np.bool_)
            begin, end = offsets[sequence.answer_start : len(sequence.ids)].T
            for low, high in (_trimmed(answer, *span) for span in own):
                flags[: len(begin)] |= (begin < high) & (end > low) & (begin < end)
            if sequence.ended:
                flags[-1] = False
            marked.append(flags)
        return marked

    def _encoded(
        self,
        pairs: Sequence[tuple[str | None, str]],
        openings: Sequence[str] | None,
        continued: Sequence[bool] | None,
    ) -> list[tuple[TokenSequence, IntArray]]:
        """Encode each pair and return its tokens' offsets [L, 2] in the answer, negative in the prompt.

        An end token that is added here has no offsets.
        """
        openings = [""] * len(pairs) if openings is None else openings
        continued = [False] * len(pairs) if continued is None else continued
        prompts = [
            "" if question is None else self.format.prompt(self.tokenizer, question) + opening
            for (question, _), opening in zip(pairs, openings, strict=True)
        ]
        texts = [prompt + answer for prompt, (_, answer) in zip(prompts, pairs, strict=True)]
        plain = [q is None for q, _ in pairs]
        rows: list[tuple[TokenSequence, IntArray] | None] = [None] * len(pairs)
        for is_plain in (False, True):
            chosen = [i for i, p in enumerate(plain) if p == is_plain]
            if not chosen:
                continue
            encoded = self._tokenised([texts[i] for i in chosen], specials=is_plain or self._specials)
            for i, (ids, offsets) in zip(chosen, encoded, strict=True):
                # Nothing predicts the first token, so no answer begins there.
                prompt = self._share(len(ids)) if is_plain else self._boundary(ids, offsets, len(prompts[i]))
                start = max(1, prompt)
                in_answer = np.array(offsets, dtype=np.int64).reshape(-1, 2) - len(prompts[i])
                sequence = self._sequence(ids, start, pairs[i], ends=not continued[i])
                if self.suffix and not is_plain:
                    sequence = self._with_suffix(sequence, pairs[i])
                    in_answer = np.insert(in_answer, [start] * len(self.suffix), -1, axis=0)
                rows[i] = sequence, in_answer
        return [row for row in rows if row is not None]

    def prompts(self, questions: Sequence[str], openings: Sequence[str] | None = None) -> list[list[int]]:
        """Encode the prompts alone, to generate from; `openings` are given beginnings of the answers.

        Trailing spaces are dropped: they are part of the next token.
        """
        begun = [self.format.prompt(self.tokenizer, question) for question in questions]
        openings = [""] * len(begun) if openings is None else openings
        texts = [(text + opening).rstrip(" ") for text, opening in zip(begun, openings, strict=True)]
        rows = list(self._tokenised(texts, specials=self._specials))
        if not self.suffix:
            return [ids for ids, _ in rows]
        ends = [self._boundary(*row, len(text)) for row, text in zip(rows, begun, strict=True)]
        return [[*ids[:end], *self.suffix, *ids[end:]] for (ids, _), end in zip(rows, ends, strict=True)]

    def alone(self, text: str) -> list[int]:
        """Encode a text as it is: no prompt, no special tokens, no end token.

        Raises:
            DataError: it has no tokens, or one that is beyond the model's vocabulary.
        """
        ((ids, _),) = self._tokenised([text], specials=False)
        if not ids:
            raise DataError(f"the text {text!r} has no tokens")
        return ids

    def chunks(self, examples: Sequence[Example]) -> list[Example]:
        """Cut plain texts longer than `max_length` tokens into pieces `<id>#0`, `<id>#1` …

        A piece has at most `max_length` tokens, special ones included, and no end token follows where the
        text continues. Examples that fit, have a question or are `truncated` stay.

        Raises:
            UserError: not even one character of a text fits into `max_length`.
        """
        cut: list[Example] = []
        for example in examples:
            text = example.answer
            whole = example.truncated or example.question is not None
            parts = [text] if whole else pieces(text, self.max_length, self._plain)
            if parts == [text] or not parts:
                cut.append(example)
            else:
                cut += [
                    replace(example, id=f"{example.id}#{i}", answer=part, continues=i + 1 < len(parts))
                    for i, part in enumerate(parts)
                ]
        return cut

    def _plain(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        (encoded,) = self._tokenised([text], specials=True)
        return encoded

    def _boundary(self, ids: Sequence[int], offsets: Sequence[tuple[int, int]], prompt_length: int) -> int:
        """Return the index of the first token that reaches into the answer, which may begin in the prompt.

        Special tokens of the prompt do not count: some take the spaces after them.
        """
        for position, (token, (begin, end)) in enumerate(zip(ids, offsets, strict=True)):
            if end > prompt_length and not (begin < prompt_length and token in self._special_ids):
                return position
        return len(offsets)

    @cached_property
    def _special_ids(self) -> frozenset[int]:
        return frozenset(self.tokenizer.added_tokens_decoder)

    def _share(self, tokens: int) -> int:
        return int(self.prompt_share * min(tokens, self.max_length))

    def _sequence(
        self, ids: Sequence[int], start: int, pair: tuple[str | None, str], *, ends: bool
    ) -> TokenSequence:
        if pair[1].strip() == "":
            raise DataError(f"an answer is empty (question: {quoted(pair[0] or '')})")
        whole = [*ids, self.end_id] if ends and (not ids or ids[-1] != self.end_id) else list(ids)
        cut = whole[: self.max_length]
        if len(cut) <= start:
            raise self._too_long(start, pair, fixed=self.max_length == self.limits.positions)
        ended = ends and len(cut) == len(whole)
        return TokenSequence(np.asarray(cut, dtype=np.int64), start, ended=ended)

    def _with_suffix(self, sequence: TokenSequence, pair: tuple[str | None, str]) -> TokenSequence:
        longer = sequence.with_suffix(self.suffix, self.limits.positions)
        if longer.answer_length < 1:
            raise self._too_long(longer.answer_start, pair, fixed=True)
        return longer

    def _too_long(self, start: int, pair: tuple[str | None, str], *, fixed: bool) -> DataError:
        """Return the error of a prompt that leaves no room for an answer; `fixed`: because of the model."""
        text = quoted(pair[0] or pair[1])
        return DataError(
            f"the prompt alone has {start} tokens and fills "
            + (
                f"the {self.limits.positions} positions of the model (text: {text}); shorten it, or leave it "
                "out"
                if fixed
                else f"dataset.max_length={self.max_length} (text: {text}); raise dataset.max_length"
            )
        )


def added(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that a tokenizer adds before and after a text, determined by encoding one.

    Raises:
        DataError: the tokenizer changes the text's own tokens, or has none for the letter a.
    """
    bare = list(tokenizer("a", add_special_tokens=False)["input_ids"])
    whole = list(tokenizer("a")["input_ids"])
    for start in range(len(whole) - len(bare) + 1):
        if bare and whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise DataError(
        f"this tokenizer encodes the text 'a' as {whole}, and as {bare} without special tokens: its files "
        "are incomplete, or it is not the tokenizer of a causal language model"
    )


def _trimmed(text: str, start: int, end: int) -> tuple[int, int]:
    """Return the span without white space at its edges: a token includes the space before its word."""
    inside = text[start:end]
    return start + len(inside) - len(inside.lstrip()), start + len(inside.rstrip())
