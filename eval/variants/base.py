"""What a variant works with, and what it gives."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, get_args

from eval.benchmark import Role
from eval.judgement.aspects import PREFIX
from eval.metric_catalog import info, is_metric
from unlearn.config import RunConfig
from unlearn.data.example import Example

if TYPE_CHECKING:
    from torch import nn

    from unlearn.data.tokenization import Encoder
    from unlearn.distributed import World

ROLES: tuple[Role, ...] = get_args(Role)


class Score(Protocol):
    """Puts a model through the configured benchmarks; a collective."""

    def __call__(
        self, model: nn.Module, label: str, roles: Sequence[Role], *, synced: bool = False,
        cheap: bool = False, without: frozenset[str] = frozenset(),
    ) -> dict[str, float]:  # fmt: skip
        """The benchmarks' metrics by their own keys, of sets with one of these roles.

        Records lie under `eval/<label>/<benchmark>` and are not collected twice, so a label belongs to one
        model. `synced`: every call of the model is a collective (ZeRO-3). `cheap`: likelihoods are all that
        counts; metrics of generated text mean nothing then. `without`: ids of examples to leave out, from the
        records of the label, which was scored before; the model is not called.
        """


@dataclass(frozen=True)
class Workbench:
    """A finished run, for what is done to its model afterwards; the same on every process.

    `sets` are the dataset's as the run loaded them, by their full names (`forget`, `forget_eval` …).
    `unlearned` gives a fresh whole copy of the finished model on the device, in compute precision, edits
    attached; `target` the same of the target, None where there is none. `directory` is the run's. `results`
    and `target_results` are flat results of the run's own evaluation and of the target's, empty where not
    known.
    """

    config: RunConfig
    sets: Mapping[str, list[Example]]
    encoder: Encoder
    world: World
    unlearned: Callable[[], nn.Module]
    target: Callable[[], nn.Module] | None
    score: Score
    directory: Path
    results: Mapping[str, float] = field(default_factory=dict)
    target_results: Mapping[str, float] = field(default_factory=dict)
    progress: bool = True


class Variant(Protocol):
    """A module of this package. `Options` is a frozen dataclass, `SETS` the training sets it reads.

    `KEYS`, a regular expression, is what stands before a benchmark's keys in its metrics. `ATTACK` says
    whether these tell how robust the forgetting is.

    `check` lists what is wrong with the options for a run of this configuration, by option name, before any
    model. `identity` is what tells the models it makes from those of other options, JSON. `measure` gives
    flat metrics `<variant>/<label>/<benchmark key>` and its own; a collective.
    """

    Options: Any
    SETS: Sequence[str]
    KEYS: str
    ATTACK: bool

    def check(self, options: Any, config: RunConfig) -> list[str]: ...

    def identity(self, options: Any) -> Any: ...

    def measure(self, bench: Workbench, options: Any) -> dict[str, float]: ...


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    return {f"{prefix}/{key}": value for key, value in metrics.items()}


def benchmark_metrics(results: Mapping[str, float]) -> dict[str, float]:
    """Of a run's flat results those of its benchmarks."""
    return {
        key: value
        for key, value in results.items()
        if is_metric(key) and not info(key).variant and info(key).benchmark != PREFIX
    }
