"""Evaluate all benchmarks of a configuration on one model."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from eval.benchmark import Role, Sets, find, is_live, read_along, scored
from eval.evaluate import evaluate, score_directory
from eval.metric_catalog import can_be, info
from unlearn.config import HardwareConfig, Section
from unlearn.data.tokenization import Encoder
from unlearn.distributed import World
from unlearn.errors import UserError
from unlearn.files import NoRoom


@dataclass(frozen=True)
class Scoring:
    """`variants._base.Score` for a run.

    `benchmarks` with their options, the `sets` they score, and the `directory` (the run's `eval`) that labels
    are folders of. The retain model is given as in `eval.evaluate.evaluate`. A benchmark without sets, whose
    questions are a library's, evaluates every model whatever the roles.
    """

    benchmarks: Mapping[str, Mapping[str, Any]]
    sets: Sets
    encoder: Encoder
    directory: Path
    world: World
    hardware: HardwareConfig
    retain_directory: Path | None = None
    retain_log: Path | None = None
    progress: bool = False

    def __call__(
        self, model: nn.Module, label: str, roles: Sequence[Role], *, collective_forward: bool = False,
        only: str | None = None, exclude_ids: frozenset[str] = frozenset(),
        sets: Sets | None = None, encoder: Encoder | None = None,
    ) -> dict[str, float]:  # fmt: skip
        """Evaluate all benchmarks and return their metrics; see `Score`.

        Raises:
            UserError: a benchmark failed, on every process. The other benchmarks' results are on disk.
            NoRoom: the disk is full; on the main process alone.
        """
        if sets is not None or encoder is not None:
            return self._with(sets, encoder)(
                model, label, roles, collective_forward=collective_forward, only=only, exclude_ids=exclude_ids
            )  # fmt: skip
        if only is not None:
            return self._for(only)(
                model, label, roles, collective_forward=collective_forward, exclude_ids=exclude_ids
            )
        metrics: dict[str, float] = {}
        failed = []
        for name in self.benchmarks:
            try:
                own = self._one(model, name, label, roles, collective_forward, exclude_ids)
                _check_keys(name, own, metrics)
                metrics |= own
            except NoRoom:  # on the main process alone, for which the others must not wait
                raise
            except UserError as error:
                failed.append(f"benchmark {name}: {error}")
        if failed:
            raise UserError("\n".join(failed))
        return metrics

    def _with(self, sets: Sets | None, encoder: Encoder | None) -> Scoring:
        asked = {n: o for n, o in self.benchmarks.items() if sets is None or find(n).SETS}
        return replace(
            self, sets=self.sets if sets is None else sets, encoder=encoder or self.encoder, benchmarks=asked
        )

    def _for(self, metric: str) -> Scoring:
        """Return the scoring of one metric: by its benchmark alone, asking no more than it needs."""
        declared = info(metric).declared
        asked = {n: o for n, o in self.benchmarks.items() if can_be(metric, find(n).METRICS)}
        if declared is None or not declared.of_answers:
            return replace(self, benchmarks=asked)
        sets = {name: [e.with_answer_alone() for e in examples] for name, examples in self.sets.items()}
        asked = {n: {**o, **_cheapest(find(n).Options)} for n, o in asked.items()}
        return replace(self, benchmarks=asked, sets=sets)

    def _one(
        self, model: nn.Module, name: str, label: str, roles: Sequence[Role], collective_forward: bool,
        exclude_ids: frozenset[str],
    ) -> dict[str, float]:  # fmt: skip
        module, options = find(name), self.benchmarks[name]
        sets = scored(module, self.sets, roles)
        if module.SETS and not sets:
            return {}
        world = self.world.with_collective_forward(collective_forward)
        if exclude_ids:
            return self._rest(name, sets, label, options, exclude_ids, world)
        return self._whole(model, name, label, options, roles, world)

    def _whole(
        self, model: nn.Module, name: str, label: str, options: Mapping[str, Any], roles: Sequence[Role],
        world: World,
    ) -> dict[str, float]:  # fmt: skip
        return evaluate(
            model, self.encoder, name, self.sets, self.directory / label, options=options,
            roles=roles if find(name).SETS else None, retain_directory=self.retain_directory,
            retain_log=self.retain_log, world=world, max_tokens=self.hardware.eval_tokens,
            max_gradient_tokens=self.hardware.backward_tokens,
            max_rows_generation=self.hardware.generate_rows, progress=self.progress, device=self.world.device,
            static_cache=self.hardware.generate_cache == "static",
        )  # fmt: skip

    def _rest(
        self, name: str, sets: Sets, label: str, options: Mapping[str, Any], exclude_ids: frozenset[str],
        world: World,
    ) -> dict[str, float]:  # fmt: skip
        """Score the label's records without some examples; empty for a benchmark that keeps no records."""
        rest = {key: [e for e in examples if e.id not in exclude_ids] for key, examples in sets.items()}
        rest = {key: examples for key, examples in rest.items() if examples}
        if is_live(find(name)) or not rest:
            return {}
        read = read_along(find(name), self.sets)

        def score() -> dict[str, float]:
            whole, part = self.directory / label / name, self.directory / label / "unseen"
            shutil.copytree(whole / "records", part / name / "records", dirs_exist_ok=True)
            return score_directory(
                name, {**rest, **read}, part, options=options, retain_directory=self.retain_directory,
                retain_log=self.retain_log,
            )  # fmt: skip

        return world.on_main(score)


def _check_keys(benchmark: str, metrics: Mapping[str, Any], others: Mapping[str, float]) -> None:
    """
    Raises:
        UserError: a metric is no number, or another benchmark of the run gives it, too.
    """
    for key, value in metrics.items():
        if not isinstance(value, int | float | np.number):
            raise UserError(f"its metric {key} is {value!r}, but must be a number")
        if key in others:
            raise UserError(
                f"its metric {key} is one of another benchmark, too: keys begin with the benchmark's own name"
            )


def _cheapest(options: type[Section]) -> dict[str, Any]:
    """Return the options under which a benchmark generates as little as it can."""
    least = {"generation": False, "max_new_tokens": 1}
    name = next((name for name in least if name in options.model_fields), None)
    return {} if name is None else {name: least[name]}
