"""Alternative answers that the target itself gives to the questions (AltPO, arXiv 2409.13474).

The noise of a sample follows from (seed, question, sample) alone: see `unlearn.passes.gumbel_sampling`.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

from unlearn.data.alternatives import draw, refusals
from unlearn.data.tokenization import Encoder
from unlearn.distributed import World
from unlearn.files import BrokenFile, digest, read_json, write_json
from unlearn.passes.generate import end_tokens, generate
from unlearn.passes.gumbel_sampling import sampling
from unlearn.passes.module_modes import evaluating

log = logging.getLogger(__name__)

_ATTEMPTS = 4
_ROUNDS = 4  # of full batches of each process in a portion: what a killed one loses at most


def sample_alternatives(
    model: nn.Module,
    encoder: Encoder,
    questions: Sequence[str],
    *,
    count: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    world: World,
    max_rows: int,
    device: torch.device,
    parts: Path | None = None,
) -> list[list[str]]:
    """`count` answers to each question, none of them empty; all of them on every process.

    An empty answer is sampled again, and after a few times a refusal takes its place. `parts` is a folder for
    portions, which are not sampled again after a kill: of this model and these options, with any questions.
    """
    wanted = [(question, k) for question in dict.fromkeys(questions) for k in range(count)]
    found: dict[tuple[str, int], str] = {}
    with evaluating(model):
        for attempt in range(_ATTEMPTS):
            missing = [place for place in wanted if not found.get(place)]
            size = _ROUNDS * world.size * max_rows
            for portion in (missing[start : start + size] for start in range(0, len(missing), size)):
                file = None if parts is None else parts / f"{digest([attempt, portion])}.json"
                texts = world.on_main(partial(_texts_of, file))
                if texts is None:
                    keys = [f"{seed}/{attempt}/{k}/{question}".encode() for question, k in portion]
                    tokens = generate(
                        model,
                        encoder.prompts([question for question, _ in portion]),
                        max_new_tokens=max_new_tokens,
                        end_ids=end_tokens(model, encoder.end_id),
                        pad_id=encoder.pad_id,
                        max_rows=max_rows,
                        world=world,
                        device=device,
                        perturb=sampling(keys, temperature),
                    )
                    decode = encoder.tokenizer.decode
                    texts = [str(decode(row, skip_special_tokens=True)).strip() for row in tokens]
                    if file is not None and world.main and len(missing) > size:
                        write_json(file, {"texts": texts})
                found.update(zip(portion, texts, strict=True))
    for question, k in wanted:
        found[question, k] = found[question, k] or draw(refusals(), 1, f"{seed}/{k}/{question}")[0]
    return [[found[question, k] for k in range(count)] for question in questions]


def cache_file(
    root: Path,
    model: str,
    dtype: str,
    encoder: Encoder,
    questions: Sequence[str],
    *,
    count: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
) -> Path:
    """Where the answers of this model to these questions, in whatever order, are kept."""
    distinct = sorted(set(questions))
    prompts = encoder.prompts(distinct) if distinct else []
    named = [model, dtype, encoder.end_id, count, float(temperature), max_new_tokens, seed, distinct, prompts]
    name = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:24]
    return root / "cache" / "alternatives" / f"{name}.json"


def read(file: Path, questions: Sequence[str]) -> list[list[str]] | None:
    """The answers to each question; None where the cache has no whole entry."""
    try:
        known = read_json(file)
        return [list(known[question]) for question in questions]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = error.what if isinstance(error, BrokenFile) else f"{file} is broken ({error!r})"
        log.warning("%s: made again", why)
        return None


def _texts_of(file: Path | None) -> list[str] | None:
    """The texts of a portion on disk; None where it is not there or broken."""
    try:
        return None if file is None else [str(text) for text in read_json(file)["texts"]]
    except (OSError, ValueError, KeyError):
        return None


def write(file: Path, questions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
    write_json(file, {q: list(own) for q, own in zip(questions, answers, strict=True)})
