"""Beginnings of greedy answers that are known from scored answers.

Where each of the first k tokens of a scored answer is the likeliest one, they are what greedy decoding gives.
A model that has memorised an answer need not generate it again. (As in decoding that verifies drafts, arXiv
2211.17192; here the drafts are the answers of the dataset.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from eval.collection.ragged import Ragged
from eval.collection.records import LikelihoodRecords, RecordsError, read_records
from eval.collection.requests import Generation, Likelihood, Request
from unlearn.data.tokenization import Encoder, PromptFormat

Key = tuple[bool, str | None]
"""Whether the question is the whole prompt, and the question; None: a plain text, which nothing asks for."""


def beginnings(directory: Path, requests: Sequence[Request], encoder: Encoder) -> dict[Key, list[int]]:
    """Return tokens by question: the prompt and, after it, the longest known beginning of the greedy answer.

    Known from the records of the likelihood requests, for the questions of the generation requests.
    """
    asked = {
        (request.raw, item.question)
        for request in requests
        if isinstance(request, Generation) and request.temperature == 0
        for item in request.items
    }
    longest: dict[Key, tuple[int, str]] = {}
    for request in requests:
        if not isinstance(request, Likelihood):
            continue
        keys = [(request.raw, item.question) for item in request.items]
        if asked.isdisjoint(keys):
            continue
        records = read_records(directory, request.name)
        if not isinstance(records, LikelihoodRecords):
            raise RecordsError(f"the records of {request.name} are not of likelihoods")
        for key, item, known in zip(keys, request.items, leading(records.correct).tolist(), strict=True):
            if key in asked and known > longest.get(key, (0, ""))[0]:
                longest[key] = (known, item.answer)
    tokens: dict[Key, list[int]] = {}
    for raw in (False, True):
        chosen = [key for key in longest if key[0] is raw]
        pairs = with_prompt(encoder, raw).pairs([(key[1], longest[key][1]) for key in chosen])
        for key, sequence in zip(chosen, pairs, strict=True):
            tokens[key] = sequence.ids[: sequence.answer_start + longest[key][0]].tolist()
    return tokens


def leading(flags: Ragged) -> np.ndarray:
    """Return the number of true values at the beginning of each row, [rows]."""
    starts, ends = flags.offsets[:-1], flags.offsets[1:]
    wrong = np.append(np.flatnonzero(~flags.values.astype(bool)), len(flags.values))
    return np.minimum(wrong[np.searchsorted(wrong, starts)], ends) - starts


def with_prompt(encoder: Encoder, raw: bool) -> Encoder:
    """Return the encoder; with `raw` one for which the question is the whole prompt."""
    return replace(encoder, format=PromptFormat("{question}", end=encoder.format.end)) if raw else encoder
