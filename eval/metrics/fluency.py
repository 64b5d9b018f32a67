"""Metrics of generated text without a true answer, per example, [E]: is it still language?

A model that was broken by unlearning writes gibberish or repeats itself. NaN means "could not be measured".
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from eval.metrics.words import word_spans
from unlearn.errors import UserError
from unlearn.paths import is_folder, user_path

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

GIBBERISH_DETECTOR = "madhurjindal/autonlp-Gibberish-Detector-492513457"
_CLEAN = "clean"

Classifier: TypeAlias = Callable[[Sequence[str]], np.ndarray]


class DetectorError(UserError):
    """The gibberish detector cannot be loaded or is none; the message names it and what to do."""


def fluency(texts: Sequence[str], classifier: Classifier) -> np.ndarray:
    """Return P(clean) of each text; 1: reads like language. (OpenUnlearning's fluency, arXiv 2506.12618.)

    Each distinct text is classified once: a model that collapsed gives many equal answers. An empty text is
    classified too, as in published figures.

    Raises:
        ValueError: the classifier does not return one value for each text.
    """
    place = {text: row for row, text in enumerate(dict.fromkeys(texts))}
    if not place:
        return np.empty(0)
    values = np.asarray(classifier(list(place)), dtype=np.float64)
    if values.shape != (len(place),):
        raise ValueError(f"the classifier gave shape {values.shape} for {len(place)} texts; one value each")
    return values[[place[text] for text in texts]]


@dataclass(frozen=True)
class GibberishDetector:
    """A sequence classifier that gives P(clean) of texts; `clean` is the index of that label."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    clean: int
    batch_size: int = 32
    max_tokens: int = 512

    def __call__(self, texts: Sequence[str]) -> np.ndarray:
        order = sorted(range(len(texts)), key=lambda row: len(texts[row]))  # little padding
        values = np.empty(len(texts))
        for start in range(0, len(order), self.batch_size):
            rows = order[start : start + self.batch_size]
            values[rows] = self._batch([texts[row] for row in rows])
        return values

    def _batch(self, texts: list[str]) -> np.ndarray:
        import torch

        inputs = self.tokenizer(
            texts, padding=True, truncation=True, max_length=self.max_tokens, return_tensors="pt"
        ).to(self.model.device)
        with torch.inference_mode():
            shares = self.model(**inputs).logits.float().softmax(-1)[:, self.clean]
        return np.asarray(shares.cpu().numpy())


def gibberish_detector(
    path_or_hub_id: str = GIBBERISH_DETECTOR, device: str | torch.device | None = None,
    *, max_tokens: int = 512,
) -> GibberishDetector:  # fmt: skip
    """Load a classifier from a folder or the hub, in fp32; texts are cut at `max_tokens` or its own limit.

    device: by default a GPU if there is one.

    Raises:
        DetectorError: it cannot be loaded, has no safetensors weights, or has no label "clean".
    """
    # The other metrics need neither, and importing them takes seconds.
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    if is_folder(path_or_hub_id):
        path_or_hub_id = str(user_path(path_or_hub_id))
    try:
        # Without `trust_remote_code` transformers asks in the terminal whether to run a repository's code.
        tokenizer = AutoTokenizer.from_pretrained(path_or_hub_id, trust_remote_code=False)
        model = AutoModelForSequenceClassification.from_pretrained(
            path_or_hub_id, use_safetensors=True, dtype=torch.float32, trust_remote_code=False
        )
    except Exception as error:  # the libraries raise anything from OSError to their own errors
        raise DetectorError(
            f"gibberish detector {path_or_hub_id}: it cannot be loaded ({error}). Give the folder or the hub "
            "id of a sequence classifier with safetensors weights and its tokenizer"
        ) from error
    labels = {int(row): str(label) for row, label in model.config.id2label.items()}
    clean = [row for row, label in labels.items() if label.strip().lower() == _CLEAN]
    if len(clean) != 1:
        raise DetectorError(
            f"gibberish detector {path_or_hub_id}: its labels are {', '.join(labels.values())}; "
            f"give a classifier that has the label {_CLEAN!r} once"
        )
    readable = getattr(model.config, "max_position_embeddings", None) or 512
    place = device or ("cuda" if torch.cuda.is_available() else "cpu")
    return GibberishDetector(
        model.eval().to(place), tokenizer, clean[0], max_tokens=min(max_tokens, int(readable))
    )


_LONG = 20  # characters that n words hardly exceed, each


def distinct(texts: Sequence[str], n: int = 4) -> np.ndarray:
    """Return the share of distinct word n-grams in each text; 1: nothing repeats, → 0: a loop.

    Words are separated by white space; in scripts without spaces each character is one (`word_spans`). Case
    counts. NaN for a short text of fewer than n words; a long one (a loop without spaces) counts by
    characters, and an empty one has 0.

    Raises:
        ValueError: n is below 1.
    """
    if n < 1:
        raise ValueError(f"distinct: n={n}; it must be ≥ 1")
    shares = []
    for text in texts:
        words: Sequence[str] = [text[start:end] for start, end in word_spans(text)]
        if len(words) < n and len(text.strip()) > _LONG * n:
            words = text.strip()
        if not words:
            shares.append(0.0)
            continue
        grams = list(zip(*(words[start:] for start in range(n)), strict=False))
        shares.append(len(set(grams)) / len(grams) if grams else math.nan)
    return np.array(shares, dtype=np.float64)


def ngram_entropy(texts: Sequence[str | None]) -> np.ndarray:
    """Return (⅔·H₂ + 4⁄3·H₃)/2 of each text, with H_n the entropy of its word n-grams in bits.

    RWKU's fluency (arXiv 2406.10890, `eval_fluency.py`), from model editing (ROME): low for
    a text that repeats itself, and for a short one. Words are those of nltk's tokenizer without its model of
    sentences, so that a full stop within a text stays with its word. 0 for a text of one word, NaN for None.
    """
    # nltk takes seconds to import, and the checks of a configuration do not need it.
    from nltk.tokenize import NLTKWordTokenizer

    split = NLTKWordTokenizer().tokenize
    values = [math.nan if text is None else _weighted_entropy(split(text)) for text in texts]
    return np.array(values, dtype=np.float64)


def token_entropy(texts: Sequence[Sequence[str] | None]) -> np.ndarray:
    """Return the entropy of each text's tokens ÷ log₂ of their number: 1 if each is there once, → 0: a loop.

    R-TOFU's token entropy (arXiv 2505.15214, `metrics/metrics.py`). 0 for one token or none, NaN for None.
    """
    values = [
        math.nan if tokens is None else _entropy(tokens) / math.log2(max(2, len(tokens))) for tokens in texts
    ]
    return np.array(values, dtype=np.float64)


def _weighted_entropy(words: Sequence[str]) -> float:
    bits = [_entropy(list(zip(*(words[i:] for i in range(n)), strict=False))) for n in (2, 3)]
    return (2 / 3 * bits[0] + 4 / 3 * bits[1]) / 2


def _entropy(items: Sequence[Hashable]) -> float:
    """Return the entropy of the items' frequencies in bits; 0 for none."""
    counts = np.array(list(Counter(items).values()), dtype=np.float64)
    shares = counts / max(1, len(items))
    return float(-np.sum(shares * np.log2(shares)))
