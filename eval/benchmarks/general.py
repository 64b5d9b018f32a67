"""General abilities of a model: tasks of lm-evaluation-harness.

Gives `general/<task>/<metric>` for every task or group, and `general/accuracy`, the mean over those with one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import field_validator, model_validator

from eval import harness
from eval.benchmark import Better, Metric, Result, Role, Sets
from eval.judgement.aspects import of_targets, targets_over
from unlearn.config import Section

if TYPE_CHECKING:
    from eval.collection.live_model import Live

SETS: Mapping[str, Role] = {}
METRICS = {
    "general/accuracy": Metric(
        "mean accuracy of the tasks that have one", Better.HIGHER, level=1, judged=("utility", of_targets)
    ),
    "general/wikitext/word_perplexity": Metric(
        "perplexity per word of WikiText", Better.LOWER, unit="from 1", level=5,
        judged=("utility", targets_over), optional=True,
    ),
    "general/*/*perplexity": Metric("perplexity", Better.LOWER, unit="from 1"),
    "general/*/bits_per_byte": Metric("cross-entropy", Better.LOWER, unit="bits per byte"),
    "general/*/accuracy": Metric("accuracy of a task", Better.HIGHER, views=("card",)),
    "general/*/accuracy*": Metric("accuracy of a task, normalised", Better.HIGHER),
    "general/*/*": Metric("as the task of lm-evaluation-harness defines it", unit=""),
}  # fmt: skip

# The tasks that FLAT (arXiv 2410.11143) averages, and the one whose perplexity it shows.
_TASKS = (
    "boolq", "rte", "hellaswag", "winogrande", "arc_challenge", "arc_easy", "openbookqa", "piqa",
    "truthfulqa_mc1", "truthfulqa_mc2", "wikitext",
)  # fmt: skip


class Options(Section):
    """Options of the benchmark.

    - `tasks`: names of tasks of the library, or of those of `include_path`.
    - `fewshot`: the number of examples before a question; None keeps each task's own.
    - `limit`: how many examples of each task to use, from the first on.
    - `include_path`: a folder of task files, which replace the library's of the same names.
    - `chat_template`: ask questions as messages of a chat.
    """

    tasks: harness.Names = _TASKS
    fewshot: int | None = None
    limit: int | None = None
    include_path: str | None = None
    chat_template: bool = False

    @field_validator("tasks")
    @classmethod
    def _distinct(cls, tasks: tuple[str, ...]) -> tuple[str, ...]:
        if not tasks:
            raise ValueError("name at least one task")
        return tuple(dict.fromkeys(tasks))

    @model_validator(mode="after")
    def _fit(self) -> Options:
        harness.check_counts(self.fewshot, self.limit)
        return self


def check(options: Options) -> list[str]:
    return harness.problems(options.tasks, options.include_path)


def check_tokenizer(options: Options, tokenizer: Any) -> list[str]:
    if options.chat_template and tokenizer.chat_template is None:
        return ["chat_template=True: this model's tokenizer has no chat template; set it to false"]
    return []


def identity(options: Options) -> dict[str, str]:
    return harness.task_files(options.include_path)


def measure(live: Live, sets: Sets, options: Options) -> Result:
    outcome = harness.run_tasks(
        live,
        options.tasks,
        fewshot=options.fewshot,
        limit=options.limit,
        include_path=options.include_path,
        chat_template=options.chat_template,
    )
    metrics = {
        f"general/{task}/{metric}": value
        for task, own in outcome.metrics.items()
        for metric, value in own.items()
    }
    accuracies = [own["accuracy"] for own in outcome.metrics.values() if "accuracy" in own]
    if accuracies:
        metrics["general/accuracy"] = float(np.mean(accuracies))
    return Result(metrics, outcome.rows, outcome.problems)
