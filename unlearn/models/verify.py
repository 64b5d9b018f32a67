"""Check that a saved model, loaded again, computes what the live one did, on a few examples of each set."""

from __future__ import annotations

import unlearn.environment  # noqa: F401 (before what imports DeepSpeed)

# isort: split
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from unlearn.config import ModelConfig
from unlearn.data.batching import collate
from unlearn.data.example import Example
from unlearn.data.tokenization import Encoder, TokenSequence
from unlearn.errors import UserError
from unlearn.models import load as models
from unlearn.models.tokenizer import load_tokenizer
from unlearn.passes.forward import answer_logits
from unlearn.passes.generate import end_tokens
from unlearn.passes.module_modes import evaluating
from unlearn.passes.out_of_memory import is_out_of_memory

log = logging.getLogger(__name__)

_EXAMPLES, _ANSWER = 2, 32  # of each set; tokens of an answer
_TEXT: list[tuple[str | None, str]] = [(None, "Where there is no example, any text will do.")]
_CPU = torch.device("cpu")
# In standard deviations of a position's logits. Without adapters the two are equal; adapters are merged in
# compute precision, where bf16 has eight bits.
_TOLERANCE = {torch.float32: 2e-3, torch.bfloat16: 0.2}
_FINER = {torch.float32: torch.float64, torch.bfloat16: torch.float32}
_ROUNDING = 4  # times what a finer precision changes: the live model rounds too, at other places


class SavedModelDiffers(UserError):
    """The saved model does not compute what the trained one does."""


@dataclass(frozen=True)
class Trial:
    """Examples to compare, with the live model's logits [N, V] (fp32, on the CPU), its end tokens and its
    compute precision.
    """

    pairs: Sequence[tuple[str | None, str]]
    logits: Tensor
    ends: Sequence[int]
    dtype: torch.dtype


def trial(
    model: nn.Module, encoder: Encoder, sets: Mapping[str, Sequence[Example]], device: torch.device
) -> Trial:
    """Compute the live model's logits of the first examples of each set. Under ZeRO 3 a collective."""
    pairs: list[tuple[str | None, str]]
    pairs = [(e.question, e.answer) for name in sorted(sets) for e in sets[name][:_EXAMPLES]] or _TEXT
    dtype = next(p.dtype for p in model.parameters() if p.is_floating_point())
    logits = logits_of(model, short(encoder, pairs), device)
    return Trial(pairs, logits, end_tokens(model, encoder.end_id), dtype)


def verify(
    live: Trial, folder: Path, cfg: ModelConfig, encoder: Encoder, device: torch.device, *,
    name: str | None = None,
) -> None:  # fmt: skip
    """Load the folder again and compare it with the live model: logits, tokens, prompts, end tokens.

    The model is loaded on the device, or on the CPU where the device has no room for a second model.
    `name`: what messages call a folder that is renamed afterwards.

    Raises:
        SavedModelDiffers: the two differ. The caller removes the folder.
    """
    name = name or folder.name
    again = replace(encoder, tokenizer=load_tokenizer(cfg, str(folder)))
    if _tokens(again, live) != _tokens(encoder, live):
        raise SavedModelDiffers(_message(name, "its tokenizer makes other tokens of the same texts"))
    sequences = short(encoder, live.pairs)

    def loaded(dtype: torch.dtype, place: torch.device = device) -> Tensor:
        with torch.random.fork_rng(devices=[]):
            model: Any = models.read_model(cfg, dtype, str(folder))
        if end_tokens(model, again.end_id) != list(live.ends):
            raise SavedModelDiffers(_message(name, "its answers end at other tokens"))
        return logits_of(models.in_precision(model, place, dtype), sequences, place)

    def computed(dtype: torch.dtype) -> Tensor:
        try:
            return loaded(dtype)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        return loaded(dtype, _CPU)  # where the weights stay in the mapped files

    logits = computed(live.dtype)
    distance, limit = difference(live.logits, logits), _TOLERANCE[live.dtype]
    if not distance <= limit:  # the model may magnify rounding: compare it with itself in a finer precision
        limit = max(limit, _ROUNDING * difference(computed(_FINER[live.dtype]), logits))
    if not distance <= limit:
        raise SavedModelDiffers(
            _message(
                name,
                f"its logits differ by {distance:.2g} standard deviations, rounding by {limit:.1g} at most",
            )
        )
    log.info("%s: loaded again, its logits are within %.1g standard deviations", name, distance)


def short(encoder: Encoder, pairs: Sequence[tuple[str | None, str]]) -> list[TokenSequence]:
    """Encode the pairs and cut each sequence after a few answer tokens."""
    return [
        replace(s, ids=s.ids[: s.answer_start + _ANSWER], ended=s.ended and s.answer_length <= _ANSWER)
        for s in encoder.pairs(pairs)
    ]


def logits_of(model: nn.Module, sequences: Sequence[TokenSequence], device: torch.device) -> Tensor:
    """Return the logits [N, V] of the answer tokens, fp32 on the CPU."""
    with evaluating(model):
        return answer_logits(model, collate(sequences).to(device)).float().cpu()


def _tokens(encoder: Encoder, live: Trial) -> list[list[int]]:
    questions = [question for question, _ in live.pairs if question is not None]
    return [s.ids.tolist() for s in encoder.pairs(live.pairs)] + encoder.prompts(questions)


def difference(live: Tensor, saved: Tensor) -> float:
    """Return the largest distance between the logits [N, V] of a position, in their standard deviations.

    Infinity where one of the two is finite and the other is not; positions without a finite logit agree.
    """
    finite = live.isfinite()
    if not torch.equal(finite, saved.isfinite()):
        return float("inf")
    live, saved = live.where(finite, 0.0), saved.where(finite, 0.0)
    distances = (live - saved).square().mean(-1).sqrt()
    return float((distances / live.std(-1).clamp(min=1e-6)).max())


def _message(name: str, what: str) -> str:
    return (
        f"the model saved in {name} is not the one that was trained: loaded again, {what}. Nothing "
        "was measured, and the folder is removed; please report this with the run's config.yaml"
    )
