"""The statistics of a micro-batch that objectives and weightings may ask for.

The name of a positional parameter of an objective or a weighting is the name of a statistic. What is not
named is not computed. Shapes: N positions of the term's mask (its answer tokens, with the mask
`answer`), B sequences, V tokens of the vocabulary, D hidden units, K numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Source = Literal["model", "reference", "teacher", "reinforced", "data", "term"]
Quantity = Literal[
    "logp",
    "logits",
    "hidden",
    "gate",
    "lengths",
    "labels",
    "refusal",
    "direction",
    "noise",
    "important",
    "weights",
    "batch_mean",
]


@dataclass(frozen=True)
class Statistic:
    """One statistic: its explanation, its shape, and where it comes from.

    Attributes:
        source: the trained model; the reference (the frozen target), the mean teacher or the reinforced
            model; the data; or the term itself, whose weighting or batch mean it is.
        quantity: what is measured, whichever model and answer it is of.
        alternative: it is of alternative answers to the same questions instead of the term's own answers.
        labelled: it is of answer tokens; a term with another mask cannot ask for it of its own answers.
    """

    name: str
    source: Source
    quantity: Quantity
    shape: str
    explanation: str
    alternative: bool = False
    labelled: bool = False

    @property
    def cached(self) -> bool:
        """Whether a frozen model gives it once, before training; it is then read from the cache."""
        return self.source in ("reference", "reinforced")

    @property
    def needs_head(self) -> bool:
        """Whether the trained model's output head has to run for it."""
        return self.source == "model" and self.quantity in ("logp", "logits")

    @property
    def needs_layer(self) -> bool:
        """Whether the term has to name a layer."""
        return self.quantity in ("hidden", "direction")


STATISTICS: Mapping[str, Statistic] = {
    statistic.name: statistic
    for statistic in (
        Statistic("logp", "model", "logp", "N", labelled=True,
                  explanation="log-probability of each answer token under the model"),
        Statistic("ref_logp", "reference", "logp", "N", labelled=True,
                  explanation="log-probability of each answer token under the reference, the frozen target"),
        Statistic("lengths", "data", "lengths", "B",
                  explanation="answer tokens of each sequence"),
        Statistic("alt_logp", "model", "logp", "N", alternative=True, labelled=True,
                  explanation="log-probability of the tokens of an alternative answer to the same question"),
        Statistic("ref_alt_logp", "reference", "logp", "N", alternative=True, labelled=True,
                  explanation="log-probability of the tokens of an alternative answer under the reference"),
        Statistic("alt_lengths", "data", "lengths", "B", alternative=True,
                  explanation="tokens of each alternative answer"),
        Statistic("logits", "model", "logits", "N V",
                  explanation="logits at the positions of the term's mask"),
        Statistic("ref_logits", "reference", "logits", "N V",
                  explanation="logits of the reference, from its cached last hidden states"),
        Statistic("teacher_logits", "teacher", "logits", "N V",
                  explanation="logits of the mean teacher, a running average of the model"),
        Statistic("reinforced_logits", "reinforced", "logits", "N V",
                  explanation="logits of a copy of the target trained further on the forget set"),
        Statistic("labels", "data", "labels", "N", labelled=True,
                  explanation="the answer tokens"),
        Statistic("refusal", "data", "refusal", "N K",
                  explanation="the K tokens of the term's refusal, from the one that is due at each "
                  "position on; they are due in turn"),
        Statistic("hidden", "model", "hidden", "N D",
                  explanation="hidden states after the layer that the term names"),
        Statistic("ref_hidden", "reference", "hidden", "N D",
                  explanation="hidden states of the reference after that layer"),
        Statistic("direction", "reference", "direction", "D",
                  explanation="mean state of the reference at the end of prompts that it refuses, minus "
                  "that of the term's own prompts"),
        Statistic("gate", "model", "gate", "B K",
                  explanation="gate logits of a gated edit, one row per sequence"),
        Statistic("noise", "data", "noise", "N", labelled=True,
                  explanation="one uniform number per answer token, fixed by seed, example and step"),
        Statistic("important", "data", "important", "N", labelled=True,
                  explanation="whether an answer token lies in an annotated span"),
        Statistic("weights", "term", "weights", "N", labelled=True,
                  explanation="detached weight of each answer token, from the term's weighting"),
        Statistic("batch_mean", "term", "batch_mean", "K",
                  explanation="mean over the whole step of what the objective's function batch_mean gives"),
    )
}  # fmt: skip

CONFIDENCES = frozenset(
    each.name for each in STATISTICS.values() if each.quantity == "logp" and not each.alternative
)
"""Log-probabilities of a term's own answers: what a weighting may average over an answer's tokens."""


def statistics_of(names: Iterable[str]) -> list[Statistic]:
    """Return the statistics of these names, once each, in the order of the table.

    Raises:
        KeyError: there is none of a name.
    """
    wanted = {STATISTICS[name].name for name in names}
    return [statistic for statistic in STATISTICS.values() if statistic.name in wanted]
