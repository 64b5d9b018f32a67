"""A model class for the harness that computes with `Live`, with the same results as its own `HFLM`.

Tokens, truncation to the model's context and sums are the same.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any, NamedTuple

import jinja2
import numpy as np
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import (
    handle_stop_sequences,
    has_bos_prefix,
    normalize_gen_kwargs,
    postprocess_generated_text,
)
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from eval.collection.live_model import Live
from eval.harness.lookup import HarnessError
from unlearn.data.tokenization import TokenSequence

_log = logging.getLogger(__name__)
_MAX_LENGTH = 2048  # where neither the model nor its tokenizer names a context, as HFLM
_UNBOUNDED = 1_000_000  # tokenizers without a limit name one far above
_MAX_NEW_TOKENS = 256  # where a task names no limit, as HFLM
# Settings that do not change greedy decoding; any other does.
_GREEDY = {"until", "max_gen_toks", "do_sample", "temperature", "top_p", "top_k", "num_beams"}

Encoded = tuple[tuple[str, str] | None, list[int], list[int]]
"""(context, continuation) or None, and the tokens of each."""


class Limits(NamedTuple):
    """Limits of a generated answer: it ends before the first of `until`, and after `tokens` tokens."""

    until: list[str]
    tokens: int


class LiveLM(TemplateLM):
    """The harness's model on `live`. Every process calls it as if alone, and `live` divides the work."""

    def __init__(self, live: Live) -> None:
        super().__init__()
        self.live = live
        self.tokenizer: Any = live.encoder.tokenizer
        self.max_length = _context(live)
        self._cut: dict[str, int] = {}

    def problems(self) -> list[str]:
        """Report what has been truncated so far."""
        return [
            f"{count} {kind} exceeded the model's context of {self.max_length} tokens and lost their start"
            for kind, count in self._cut.items()
        ]

    @property
    def eot_token_id(self) -> int:
        return self.live.encoder.end_id if (end := self.tokenizer.eos_token_id) is None else int(end)

    @property
    def prefix_token_id(self) -> int:
        """The token that replaces an empty context."""
        begin = self.tokenizer.bos_token_id
        return self.eot_token_id if begin is None else int(begin)

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
        """Encode a text with the special tokens before it, once, and without those after it."""
        if add_special_tokens is None and has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id)):
            add_special_tokens = False
        bare = list(self.tokenizer.encode(string, add_special_tokens=False))
        return bare if add_special_tokens is False else [*self.live.encoder.before, *bare]

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        def rendered(messages: list[dict[str, str]]) -> str:
            return self.live.encoder.format.render(
                self.tokenizer,
                messages,
                add_generation_prompt=add_generation_prompt,
                continue_final_message=not add_generation_prompt,
            )

        try:
            return rendered(chat_history)
        except jinja2.exceptions.TemplateError:
            _log.warning("the chat template has no system message: the task's description is left out")
            return rendered([message for message in chat_history if message["role"] != "system"])

    def loglikelihood(self, requests: list[Instance], disable_tqdm: bool = True) -> list[tuple[float, bool]]:
        results: list[tuple[float, bool]] = super().loglikelihood(requests, disable_tqdm=disable_tqdm)
        return results

    def _loglikelihood_tokens(self, requests: Sequence[Encoded], **_: Any) -> list[tuple[float, bool]]:
        row_of: dict[tuple[tuple[int, ...], int], int] = {}
        rows = [
            row_of.setdefault(self._fitted(text, context, answer), len(row_of))
            for text, context, answer in requests
        ]
        columns = self.live.read(
            [TokenSequence(np.array(ids, dtype=np.int64), start, ended=False) for ids, start in row_of],
            label="choices",
        )
        sums = [float(logp.astype(np.float64).sum()) for logp in columns["logp"]]
        greedy = [bool(correct.all()) for correct in columns["correct"]]
        return [(sums[row], greedy[row]) for row in rows]

    def _fitted(
        self, text: tuple[str, str] | None, context: list[int], answer: list[int]
    ) -> tuple[tuple[int, ...], int]:
        """Return the tokens and the start of the answer, cut to the context and one more token, the last.

        The last token is only predicted, so it needs no context.
        """
        if not 0 < len(answer) <= self.max_length:
            raise HarnessError(
                f"an answer of a task has {len(answer)} tokens, but 1 to {self.max_length} can be scored: "
                f"{text and text[1][:80]!r} after {text and text[0][-80:]!r}"
            )
        ids = (context + answer)[-(self.max_length + 1) :]
        if len(ids) < len(context) + len(answer):
            self._cut["prompts"] = self._cut.get("prompts", 0) + 1
        return tuple(ids), len(ids) - len(answer)

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = True) -> list[float]:
        """Score each token of each text once, in windows of the model's context that do not overlap."""
        owner: list[int] = []
        windows: list[Encoded] = []
        for i, request in enumerate(requests):
            pieces = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for context, answer in map(make_disjoint_window, pieces):
                owner.append(i)
                windows.append((None, context, answer))
        totals = [0.0] * len(requests)
        for i, (logp, _) in zip(owner, self._loglikelihood_tokens(windows), strict=True):
            totals[i] += logp
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = True) -> list[str]:
        """Generate answers and cut them at stop strings afterwards, which does not change what precedes."""
        prompts = [
            (request.args[0], self.generation(request.args[1], request.task_name)) for request in requests
        ]
        texts: dict[tuple[str, int], str] = {}
        for tokens in sorted({limits.tokens for _, limits in prompts}):
            contexts = list(dict.fromkeys(context for context, limits in prompts if limits.tokens == tokens))
            room = self.max_length - tokens
            encoded = [self.tok_encode(context) for context in contexts]
            if cut := sum(len(ids) > room for ids in encoded):
                self._cut["questions"] = self._cut.get("questions", 0) + cut
            answers = self.live.answers([ids[-room:] for ids in encoded], max_new_tokens=tokens)
            for context, answer in zip(contexts, answers, strict=True):
                texts[context, tokens] = str(self.tokenizer.decode(answer, skip_special_tokens=True))
        return [
            postprocess_generated_text(texts[context, limits.tokens], limits.until, None)
            for context, limits in prompts
        ]

    def generation(self, settings: dict[str, Any] | None, task: str | None) -> Limits:
        """Return the limits of a task's answers.

        Raises:
            HarnessError: the task needs more than greedy decoding, or longer answers than the context.
        """
        merged = dict(normalize_gen_kwargs(settings or {}, _MAX_NEW_TOKENS))
        greedy = not merged["do_sample"] or float((settings or {}).get("temperature", 1.0)) == 0.0
        others = sorted(set(merged) - _GREEDY) + (["num_beams"] if merged.get("num_beams", 1) != 1 else [])
        if not greedy or others:
            raise HarnessError(
                f"task {task} asks for {', '.join(others) if greedy else 'sampled answers (do_sample)'}; "
                "only greedy answers are supported: leave it out, or use a copy of its file with do_sample "
                "false and no other settings, through include_path"
            )
        if merged["max_gen_toks"] >= self.max_length:
            raise HarnessError(
                f"task {task} asks for answers of {merged['max_gen_toks']} tokens, but the model's context "
                f"has {self.max_length}: use a copy of its file with fewer (max_gen_toks), through "
                "include_path"
            )
        end = self.tokenizer.decode(self.eot_token_id, skip_special_tokens=False)
        return Limits(handle_stop_sequences(list(merged["until"]), eos=end), int(merged["max_gen_toks"]))


def _context(live: Live) -> int:
    limit = live.encoder.tokenizer.model_max_length
    return live.context or (int(limit) if limit is not None and limit < _UNBOUNDED else _MAX_LENGTH)
