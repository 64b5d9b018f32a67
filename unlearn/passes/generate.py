"""Greedy generation in rounds, on the scores of a transformers model or on perturbed ones.

A batch decodes until its longest row ends. Therefore each round generates few tokens, drops the rows that
have ended, and batches the others again for twice as many tokens. Recomputing the tokens so far costs one
parallel forward. For the same reason a known beginning of an answer costs next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from unlearn.distributed import World
from unlearn.passes.out_of_memory import Bins, in_portions
from unlearn.passes.prompt_layout import laid_out, left_padded

_FIRST_ROUND = 32
_CHANGES = (
    "bad_words_ids", "begin_suppress_tokens", "exponential_decay_length_penalty", "forced_bos_token_id",
    "forced_eos_token_id", "guidance_scale", "min_new_tokens", "sequence_bias", "suppress_tokens",
)  # fmt: skip
"""Options of a model's generation config with which greedy decoding may not take the likeliest token."""

Perturb = Callable[[Sequence[int], int, Tensor], Tensor]
"""Maps (prompt numbers [B], tokens so far, scores [B, V]) to the scores whose arg-max is the next token."""


def generate(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    max_new_tokens: int,
    end_ids: Sequence[int],
    pad_id: int,
    max_rows: int,
    world: World,
    device: torch.device,
    begun: Sequence[Sequence[int]] = (),
    advance: Callable[[int], None] = lambda _: None,
    perturb: Perturb | None = None,
    static_cache: bool = False,
) -> list[list[int]]:
    """Return the new tokens of each prompt before the first of `end_ids`, on every process. A collective.

    `begun` has the first tokens of each answer, as far as they are known (not with `perturb`). A batch then
    decodes as many tokens as its shortest answer needs, and the others are cut.
    `advance` is called with the number of prompts that this process has finished since its last call.
    `perturb` changes the scores; if it depends only on the prompt's number and the tokens so far, batching
    does not change the samples. `static_cache`: keys and values have buffers of fixed size, for which
    transformers can compile the model.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    pending: list[int] = []
    for i, known in enumerate(begun or answers):
        answers[i], ended = _until_end(known, end_ids)
        if not ended and len(known) < max_new_tokens:
            pending.append(i)
    advance((len(prompts) - len(pending)) // world.size)
    total = 0
    while pending:
        rows = [_Begun(i, prompts[i], answers[i]) for i in pending]
        longest = max(max_new_tokens - len(row.answer) for row in rows)
        tokens = min(max(total, _FIRST_ROUND), longest)
        this = _Round(
            model, rows, max_new_tokens, total, _greedy(tokens, end_ids, pad_id, static_cache),
            world, device, advance, perturb,
        )  # fmt: skip
        mine = in_portions(
            world, "generate_rows", max_rows, [len(row.tokens) for row in rows], this.generate,
            collective=world.collective_forward,
        )  # fmt: skip
        finished = set()
        for i, new_tokens, has_finished in world.gather(mine):
            answers[i] += new_tokens
            if has_finished:
                finished.add(i)
        pending = [i for i in pending if i not in finished]
        total += tokens
    return [answer[:max_new_tokens] for answer in answers]


def takes_the_likeliest(model: nn.Module) -> bool:
    """Return whether greedy decoding takes the likeliest token, by the model's own generation config."""
    own = getattr(model, "generation_config", None)
    return all(getattr(own, option, None) is None for option in _CHANGES)


def end_tokens(model: nn.Module, end_id: int) -> list[int]:
    """Return the tokens that end an answer: the encoder's and those of the model's generation config."""
    own: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return sorted({end_id, *([] if own is None else [own] if isinstance(own, int) else own)})


def _greedy(tokens: int, end_ids: Sequence[int], pad_id: int, static_cache: bool) -> GenerationConfig:
    # Transformers fills in unset options from the model's own generation config, so every option that a
    # published model sets for sampling is reset by name.
    return GenerationConfig(
        max_new_tokens=tokens,
        min_length=0,
        do_sample=False,
        num_beams=1,
        temperature=1.0,
        top_p=1.0,
        top_k=50,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        use_cache=True,
        cache_implementation="static" if static_cache else None,
        eos_token_id=list(end_ids),
        pad_token_id=pad_id,
    )


class _Noise(LogitsProcessor):
    def __init__(self, perturb: Perturb, prompts: Sequence[int], so_far: int) -> None:
        self.perturb, self.prompts, self.step = perturb, prompts, so_far

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        self.step += 1
        return cast("torch.FloatTensor", self.perturb(self.prompts, self.step - 1, scores))


@dataclass(frozen=True)
class _Begun:
    """An answer to go on with: the prompt's number, its tokens, and those of the answer so far."""

    number: int
    prompt: Sequence[int]
    answer: Sequence[int]

    @property
    def tokens(self) -> list[int]:
        return [*self.prompt, *self.answer]


@dataclass(frozen=True)
class _Round:
    """Some more tokens for each of `rows`; an answer ends with `limit` tokens.

    `so_far`: tokens that this call has generated for each answer.
    """

    model: Any
    rows: Sequence[_Begun]
    limit: int
    so_far: int
    config: GenerationConfig
    world: World
    device: torch.device
    advance: Callable[[int], None]
    perturb: Perturb | None

    def generate(self, bins: Bins) -> list[tuple[int, list[int], bool]]:
        """Return prompt, new tokens, and whether the answer is finished, of this process's rows."""
        mine: list[tuple[int, list[int], bool]] = []
        for part in self.world.mine(bins):
            rows = [self.rows[j] for j in part or [0]]
            new = self._batch(rows)  # a collective, also without a part of its own
            cut = [self._cut(*pair) for pair in zip(rows[: len(part)], new[: len(part)], strict=True)]
            mine += cut
            self.advance(sum(finished for _, _, finished in cut))
        return mine

    def _cut(self, row: _Begun, new: Sequence[int]) -> tuple[int, list[int], bool]:
        tokens, ended = _until_end(new, self.config.eos_token_id)
        return row.number, tokens, ended or len(row.answer) + len(tokens) >= self.limit

    def _batch(self, rows: Sequence[_Begun]) -> list[list[int]]:
        given, pad_id = [row.tokens for row in rows], self.config.pad_token_id
        width = max(len(tokens) for tokens in given)
        ids = torch.tensor([[pad_id] * (width - len(tokens)) + tokens for tokens in given])
        mask = torch.tensor([[0] * (width - len(tokens)) + [1] * len(tokens) for tokens in given])
        noise = [_Noise(self.perturb, [row.number for row in rows], self.so_far)] if self.perturb else []
        # Edits inside the model act at the end of the prompt, which the answer so far may follow.
        starts = torch.tensor([len(row.prompt) for row in rows])
        layout = left_padded(starts, mask.sum(1), width, self.device)
        with laid_out(layout):
            out = self.model.generate(
                input_ids=ids.to(self.device),
                attention_mask=mask.to(self.device),
                generation_config=self.config,
                synced_gpus=self.world.collective_forward,
                logits_processor=LogitsProcessorList(noise),
            )
        new: list[list[int]] = out[:, width:].tolist()
        return new


def _until_end(tokens: Sequence[int], end_ids: Sequence[int]) -> tuple[list[int], bool]:
    for position, token in enumerate(tokens):
        if token in end_ids:
            return list(tokens[:position]), True
    return list(tokens), False
