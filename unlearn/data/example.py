"""The one schema every data source fills and every benchmark reads."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer, or a plain text.

    `id` is unique over all sets of a run (`"forget10/12"`). A plain text has no question; its text is
    the answer. The other fields are filled where a benchmark has them; `template` is a stand-in answer of the
    data's own, `group` a benchmark's own division of a set (`"task1/knowledge"`).
    """

    id: str
    answer: str
    question: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    template: str | None = None
    group: str | None = None
