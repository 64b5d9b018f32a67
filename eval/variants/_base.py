"""The contract of a variant, and what it gets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, get_args

from eval.benchmark import Role, Sets
from unlearn.config import RunConfig, Section
from unlearn.data.example import Example

if TYPE_CHECKING:
    from torch import nn

    from unlearn.data.tokenization import Encoder
    from unlearn.distributed import World
    from unlearn.models.weights import WeightsSource

ROLES: tuple[Role, ...] = get_args(Role)


class Score(Protocol):
    """Evaluate a model with the configured benchmarks; a collective."""

    def __call__(
        self, model: nn.Module, label: str, roles: Sequence[Role], *, collective_forward: bool = False,
        only: str | None = None, exclude_ids: frozenset[str] = frozenset(),
        sets: Sets | None = None, encoder: Encoder | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Return the benchmarks' metrics by their own keys, of sets with one of these roles.

        Records are in `eval/<label>/<benchmark>` and are not collected twice: a label belongs to one model.

        - `collective_forward`: every call of the model is a collective (ZeRO-3).
        - `only`: the key of the one metric that is needed. Its benchmark alone is evaluated, and asks for no
          more than it needs (`Metric.of_answers`); other metrics may be absent.
        - `exclude_ids`: ids of examples to leave out of the records of a label that was scored
          before. The model is not called.
        - `sets`: these in place of the run's; benchmarks whose questions are a library's are left out.
        - `encoder`: this one in place of the run's.
        """


HeldModel = AbstractContextManager[tuple["nn.Module", bool]]
"""Yields a model and whether each of its calls is a collective."""


class Held(Protocol):
    """Hold a model of the run; see `Workbench`."""

    def __call__(self, which: Literal["unlearned", "target"] = "unlearned") -> HeldModel: ...


@dataclass(frozen=True)
class Workbench:
    """A finished run, as a variant gets it; the same on every process.

    - `sets`: the dataset's, as the run loaded them, by their full names (`forget`, `forget_eval` …).
      `reported` are those that the run's results are of: as many as `eval.limit` says, without the selection
      items of `eval.select`.
    - `held` yields a new copy of the finished model or of the target, in compute precision and with edits
      attached, and whether its calls are collectives: whole on the device, or at ZeRO 3 shared out over the
      processes. `held_from` does so with the weights of a folder or hub id, or of `model.path` (None).
      `editing` is a context in which the parameters of one of its modules are whole, to be changed.
    - `has_target`: whether the finished model was made from a target, which `held` yields.
    - `trainable` returns the finished model for an engine, which at ZeRO 3 may fit on no device.
    - `weights` says where those of the `target` and of the `retain` model are, as far as the run has them.
    - `directory`: the run's. `questions`: a key of what is asked besides the configuration, as files have it.
    - `results`, `target_results`: flat results of the run's own evaluation and of the target's, empty where
      they are not known.
    - `selecting`: the same bench with the selection items in place of the reported ones (`eval.select`), None
      where the sets are not divided. Give it labels of its own.
    """

    config: RunConfig
    sets: Mapping[str, list[Example]]
    reported: Mapping[str, list[Example]]
    encoder: Encoder
    world: World
    score: Score
    directory: Path
    held: Held
    held_from: Callable[[str | None], HeldModel]
    has_target: bool
    trainable: Callable[[], nn.Module]
    editing: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext
    weights: Mapping[str, WeightsSource] = field(default_factory=dict)
    results: Mapping[str, float] = field(default_factory=dict)
    target_results: Mapping[str, float] = field(default_factory=dict)
    progress: bool = True
    selecting: Workbench | None = None
    questions: str = ""


class Variant(Protocol):
    """A module of this package, or of your own.

    It may also have `warnings(options, config)`: sentences on settings that are allowed but doubtful; and
    `METRICS`, which declares its own keys as a benchmark does (`eval.benchmark`). Where its models depend on
    more than its options and the unlearned model it says so, as JSON: `settings(config)` of the
    configuration, `examples(bench, options)` of the evaluated sets.
    """

    Options: type[Section]
    SETS: Sequence[str]
    """The training sets that it reads."""
    KEYS: str
    """A regular expression of what stands before a benchmark's keys in its metrics: the variant's name, and
    what distinguishes its models."""
    ATTACK: bool
    """Whether its metrics measure how robust the forgetting is."""

    def check(self, options: Any, config: RunConfig) -> list[str]:
        """Return what is wrong with the options for a run, each `option=value: why`, before any model."""

    def identity(self, options: Any) -> Any:
        """Return what distinguishes the models it makes from those of other options, as JSON."""

    def measure(self, bench: Workbench, options: Any) -> dict[str, float]:
        """Return flat metrics, `<what KEYS matches>/<benchmark key>` and the variant's own; a collective."""


def prefixed(prefix: str, metrics: Mapping[str, float]) -> dict[str, float]:
    """Return the metrics with a prefix before each key."""
    return {f"{prefix}/{key}": value for key, value in metrics.items()}
