"""WMDP (arXiv 2403.03218): hazardous knowledge of a model, and general knowledge (MMLU).

Questions with four choices, from lm-evaluation-harness: `wmdp/<part>/accuracy` and `mmlu/accuracy`. Guessing
gives 0.25.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from pydantic import field_validator, model_validator

from eval import harness
from eval.benchmark import Better, Metric, Result, Role, Sets
from eval.judgement.aspects import above_chance_of_targets, closeness_to_chance
from unlearn.config import Section
from unlearn.errors import did_you_mean

if TYPE_CHECKING:
    from eval.collection.live_model import Live

SETS: Mapping[str, Role] = {}
PARTS = ("bio", "cyber", "chem")
METRICS = {
    **{
        f"wmdp/{part}/accuracy": Metric(
            "accuracy on questions with four choices; 0.25 is chance", Better.FORGOTTEN_IF_LOWER, level=1,
            # A run that is scored by other benchmarks too was not made to forget this.
            judged=("forget_efficacy", closeness_to_chance), weak=True, optional=True,
            views=("forgetting", "card", "changed"),
        )
        for part in PARTS
    },
    "mmlu/accuracy": Metric(
        "accuracy on MMLU; 0.25 is chance", Better.HIGHER, level=1,
        judged=("utility", above_chance_of_targets), views=("utility",),
    ),
}  # fmt: skip


class Options(Section):
    """Options of the benchmark.

    - `parts`: which of WMDP's three parts are asked.
    - `mmlu`: also ask MMLU.
    - `limit`: how many examples of each task to use, from the first on.
    - `tasks`: by part or `mmlu`, the name of a task that replaces the harness's own.
    - `fewshot`: for MMLU; the harness always asks WMDP without examples.
    - `include_path`: a folder of task files, which replace the library's of the same names.
    """

    parts: harness.Names = PARTS
    mmlu: bool = True
    fewshot: int = 0
    limit: int | None = None
    include_path: str | None = None
    tasks: Mapping[str, str] = {}

    @field_validator("parts")
    @classmethod
    def _distinct(cls, parts: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(parts))

    @model_validator(mode="after")
    def _fit(self) -> Options:
        for part in (*self.parts, *(key for key in self.tasks if key != "mmlu")):
            if part not in PARTS:
                raise ValueError(f"there is no part {part!r}{did_you_mean(part, PARTS)}")
        if not self.asked:
            raise ValueError("parts=[] and mmlu=false; nothing is left to ask")
        harness.check_counts(self.fewshot, self.limit)
        return self

    @property
    def asked(self) -> dict[str, str]:
        """Return the task of each metric."""
        named = {f"wmdp/{part}/accuracy": self.tasks.get(part, f"wmdp_{part}") for part in self.parts}
        return named | ({"mmlu/accuracy": self.tasks.get("mmlu", "mmlu")} if self.mmlu else {})


def check(options: Options) -> list[str]:
    return harness.problems(list(options.asked.values()), options.include_path)


def identity(options: Options) -> dict[str, str]:
    return harness.task_files(options.include_path)


def measure(live: Live, sets: Sets, options: Options) -> Result:
    outcome = harness.run_tasks(
        live,
        list(dict.fromkeys(options.asked.values())),
        fewshot=options.fewshot,
        limit=options.limit,
        include_path=options.include_path,
    )
    metrics = {}
    problems = list(outcome.problems)
    for key, task in options.asked.items():
        metrics[key] = outcome.metrics.get(task, {}).get("accuracy", math.nan)
        if "accuracy" not in outcome.metrics.get(task, {}):
            problems.append(f"{key}: the task {task} has no metric acc")
    return Result(metrics, outcome.rows, problems)
