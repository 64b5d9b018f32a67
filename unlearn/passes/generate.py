"""Greedy generation in rounds, on the scores of a transformers model or on perturbed ones.

A batch decodes until its longest row ends. Therefore each round generates few tokens, drops the rows that
have ended, and batches the others again for twice as many tokens. Recomputing the tokens so far costs one
parallel forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from unlearn.distributed import World
from unlearn.passes.out_of_memory import Bins, in_portions
from unlearn.passes.prompt_layout import laid_out, left_padded

_FIRST_ROUND = 32

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
    advance: Callable[[int], None] = lambda _: None,
    perturb: Perturb | None = None,
    static_cache: bool = False,
) -> list[list[int]]:
    """Return the new tokens of each prompt before the first of `end_ids`, on every process. A collective.

    `advance` is called with the number of prompts that this process has finished since its last call.
    `perturb` changes the scores; if it depends only on the prompt's number and the tokens so far, batching
    does not change the samples. `static_cache`: keys and values have buffers of fixed size, for which
    transformers can compile the model.
    """
    answers: list[list[int]] = [[] for _ in prompts]
    pending = list(range(len(prompts)))
    for tokens, last in _rounds(max_new_tokens):
        if not pending:
            break
        rows = [[*prompts[i], *answers[i]] for i in pending]
        this = _Round(
            model, [(i, rows[j], len(prompts[i])) for j, i in enumerate(pending)], len(answers[pending[0]]),
            _greedy(tokens, end_ids, pad_id, static_cache), last, world, device, advance, perturb,
        )  # fmt: skip
        mine = in_portions(
            world, "generate_rows", max_rows, [len(row) for row in rows], this.tokens,
            collective=world.collective_forward,
        )  # fmt: skip
        ended = set()
        for i, new_tokens, has_ended in world.gather(mine):
            answers[i] += new_tokens
            if has_ended:
                ended.add(i)
        pending = [i for i in pending if i not in ended]
    return answers


def end_tokens(model: nn.Module, end_id: int) -> list[int]:
    """Return the tokens that end an answer: the encoder's and those of the model's generation config."""
    own: Any = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    return sorted({end_id, *([] if own is None else [own] if isinstance(own, int) else own)})


def _rounds(max_new_tokens: int) -> Iterator[tuple[int, bool]]:
    """Yield the number of tokens of each round, and whether it is the last."""
    total, upto = 0, min(_FIRST_ROUND, max_new_tokens)
    while total < max_new_tokens:
        yield upto - total, upto == max_new_tokens
        total, upto = upto, min(2 * upto, max_new_tokens)


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
class _Round:
    """Some more tokens for each of `rows`: the prompt's number, its tokens so far, and the prompt's length.

    `so_far`: tokens that each answer has.
    """

    model: Any
    rows: Sequence[tuple[int, Sequence[int], int]]
    so_far: int
    config: GenerationConfig
    last: bool
    world: World
    device: torch.device
    advance: Callable[[int], None]
    perturb: Perturb | None

    def tokens(self, bins: Bins) -> list[tuple[int, list[int], bool]]:
        """Return prompt, new tokens, and whether the answer has ended, of this process's rows."""
        mine: list[tuple[int, list[int], bool]] = []
        for part in self.world.mine(bins):
            new = self._batch([self.rows[j] for j in part or [0]])
            cuts = [_until_end(row, self.config.eos_token_id) for row in new[: len(part)]]
            mine += [(self.rows[j][0], *cut) for j, cut in zip(part, cuts, strict=True)]
            self.advance(sum(ended or self.last for _, ended in cuts))
        return mine

    def _batch(self, rows: Sequence[tuple[int, Sequence[int], int]]) -> list[list[int]]:
        numbers, given, starts = zip(*rows, strict=True)
        width, pad_id = max(len(row) for row in given), self.config.pad_token_id
        ids = torch.tensor([[pad_id] * (width - len(row)) + list(row) for row in given])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in given])
        noise = [_Noise(self.perturb, numbers, self.so_far)] if self.perturb else []
        # Edits inside the model act at the end of the prompt, which the answer so far may follow.
        layout = left_padded(torch.tensor(starts), mask.sum(1), width, self.device)
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
