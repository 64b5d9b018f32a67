"""The schema of an example, which data sources fill and benchmarks read."""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True, slots=True)
class Example:
    """A question with its answer, or a plain text.

    `id` is unique over all sets of a run (`"forget10/12"`). A plain text has no question; its text is
    the answer. The other fields are optional. `template` is an alternative answer in the data, `group` a
    benchmark's division of a set (`"task1/knowledge"`), `other_answers` are further right answers. `opening`
    is a beginning of the answer that is not trained on: it belongs to the prompt. Of a plain text that is
    `truncated` only the first `dataset.max_length` tokens are trained on; another one that is longer is cut
    into pieces, after which it `continues` but for the last.
    """

    id: str
    answer: str
    question: str | None = None
    paraphrased_answer: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    paraphrased_question: str | None = None
    template: str | None = None
    group: str | None = None
    truncated: bool = False
    other_answers: tuple[str, ...] = ()
    opening: str = ""
    continues: bool = False

    def with_answer_alone(self) -> Example:
        """Return it without other questions and answers than its own."""
        return replace(
            self, paraphrased_answer=None, perturbed_answers=(), paraphrased_question=None, other_answers=()
        )
