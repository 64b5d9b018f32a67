"""The statistics of a micro-batch that objectives and weightings may ask for.

The name of a positional parameter of an objective or a weighting is the name of a statistic. What is not
named is not computed. Shapes: N positions that the term looks at (its answer tokens, with the mask
`answer`), B sequences, V tokens of the vocabulary, D hidden units, K numbers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

Source = Literal["model", "reference", "teacher", "reinforced", "data", "term"]
Quantity = Literal[
    "logp", "logits", "hidden", "gate", "lengths", "labels", "noise", "important", "weights", "batch_mean"
]


@dataclass(frozen=True)
class Statistic:
    """One statistic: its explanation, its shape, and where it comes from.

    Attributes:
        source: the trained model; the reference (the frozen target), the mean teacher or the reinforced
            model; the data; or the term itself, whose weighting or batch mean it is.
        quantity: what is measured, whichever model and answer it is of.
        alternative: it is of alternative answers to the same questions instead of the term's own answers.
        labelled: it refers to answer tokens, so that a term with another mask cannot ask for it.
    """

    name: str
    explanation: str
    shape: str
    source: Source
    quantity: Quantity
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
        return self.quantity == "hidden"


STATISTICS: Mapping[str, Statistic] = {
    statistic.name: statistic
    for statistic in (
        Statistic(
            "logp", "log-probability of each answer token under the model", "N", "model", "logp",
            labelled=True,
        ),
        Statistic(
            "ref_logp", "the same under the reference (the frozen target), computed once and cached", "N",
            "reference", "logp", labelled=True,
        ),
        Statistic("lengths", "answer tokens of each sequence", "B", "data", "lengths"),
        Statistic(
            "alt_logp", "log-probability of the tokens of an alternative answer to the same question", "N",
            "model", "logp", alternative=True, labelled=True,
        ),
        Statistic(
            "ref_alt_logp", "the same under the reference", "N", "reference", "logp", alternative=True,
            labelled=True,
        ),
        Statistic(
            "alt_lengths", "tokens of each alternative answer", "B", "data", "lengths", alternative=True
        ),
        Statistic(
            "logits", "logits at the positions that predict an answer token", "N V", "model", "logits"
        ),
        Statistic(
            "ref_logits", "the same of the reference, from its cached last hidden states", "N V", "reference",
            "logits",
        ),
        Statistic(
            "teacher_logits", "the same of the mean teacher, a running average of the model", "N V",
            "teacher", "logits",
        ),
        Statistic(
            "reinforced_logits", "the same of a copy of the target trained further on the forget set", "N V",
            "reinforced", "logits",
        ),
        Statistic("labels", "the answer tokens", "N", "data", "labels", labelled=True),
        Statistic("hidden", "hidden states after the layer that the term names", "N D", "model", "hidden"),
        Statistic("ref_hidden", "the same of the reference, cached", "N D", "reference", "hidden"),
        Statistic("gate", "gate logits of a gated edit, one row per sequence", "B K", "model", "gate"),
        Statistic(
            "noise", "one uniform number per answer token, fixed by seed, example and step", "N", "data",
            "noise", labelled=True,
        ),
        Statistic(
            "important", "whether an answer token lies in an annotated span", "N", "data", "important",
            labelled=True,
        ),
        Statistic(
            "weights", "detached weight of each answer token, from the term's weighting", "N", "term",
            "weights", labelled=True,
        ),
        Statistic(
            "batch_mean", "mean over the whole step of what the objective's function batch_mean gives", "K",
            "term", "batch_mean",
        ),
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
