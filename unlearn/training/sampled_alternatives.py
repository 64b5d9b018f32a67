"""Alternative answers sampled from the target (AltPO, arXiv 2409.13474).

The noise of a sample depends only on (seed, question, sample): see `unlearn.passes.gumbel_sampling`.
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
_ROUNDS = 4  # of full batches of each process in a portion: the most that a killed run loses


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
    """Return `count` answers to each question, none of them empty, on every process. A collective.

    An empty answer is sampled again; after `_ATTEMPTS` times a refusal replaces it. `parts` is a folder for
    portions, which a run reads instead of sampling them again after a kill. All portions in it are of this
    model and these options; the questions may differ.
    """
    slots = [(question, k) for question in dict.fromkeys(questions) for k in range(count)]
    answers: dict[tuple[str, int], str] = {}
    with evaluating(model):
        for attempt in range(_ATTEMPTS):
            missing = [slot for slot in slots if not answers.get(slot)]
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
                answers.update(zip(portion, texts, strict=True))
    for question, k in slots:
        answers[question, k] = answers[question, k] or draw(refusals(), 1, f"{seed}/{k}/{question}")[0]
    return [[answers[question, k] for k in range(count)] for question in questions]


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
    """Return the cache file of this model's answers to these questions, in any order."""
    distinct = sorted(set(questions))
    prompts = encoder.prompts(distinct) if distinct else []
    named = [model, dtype, encoder.end_id, count, float(temperature), max_new_tokens, seed, distinct, prompts]
    name = hashlib.sha256(json.dumps(named).encode()).hexdigest()[:24]
    return root / "cache" / "alternatives" / f"{name}.json"


def read(file: Path, questions: Sequence[str]) -> list[list[str]] | None:
    """Read the answers to each question; None where the entry is missing or broken."""
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
    """Read the texts of a portion; None where it is missing or broken."""
    try:
        return None if file is None else [str(text) for text in read_json(file)["texts"]]
    except (OSError, ValueError, KeyError):
        return None


def write(file: Path, questions: Sequence[str], answers: Sequence[Sequence[str]]) -> None:
    write_json(file, {q: list(own) for q, own in zip(questions, answers, strict=True)})
