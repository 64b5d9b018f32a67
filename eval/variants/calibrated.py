"""Forgetting at equal retention: the largest part of the unlearning that keeps a share of retention.

Methods trade forgetting for retention at different points, so their forgetting alone does not compare. UWC
(unlearning with control, arXiv 2406.09179) mixes the weights θ = α·unlearned + (1 − α)·target with the
largest α that keeps a given share of the target's retention, and compares forgetting there.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from eval.benchmark import Better, Role
from eval.configuration import benchmark_options
from eval.judgement.aspects import PREFIX
from eval.metric_catalog import can_be, info, metrics_of
from eval.variants._base import ROLES, Workbench, prefixed
from unlearn.config import RunConfig, Section
from unlearn.data.sources import available
from unlearn.errors import UserError, did_you_mean
from unlearn.interventions import attached

log = logging.getLogger(__name__)

SETS: tuple[str, ...] = ()
KEYS = r"calibrated(?:/selection)?+"
"""Prefix of a benchmark's keys; `calibrated/selection` of the items that `eval.select` sets apart."""
ATTACK = False
PREFERRED = ("retain/extraction_strength", "retain/probability", "retain/knowmem")
"""Ends of metric keys, of which the first that exists is used: memorised answers as in UWC, else similar."""


class Options(Section):
    """Options of the variant.

    - `share`: of the target's `metric`, the share to keep. 0.95 keeps nearly all, so that only forgetting is
      left to compare; the code of the G-effect's authors has 0.9 (arXiv 2502.19301).
    - `metric`: the key of one that is better if higher. None: the first that is measured of
      retain/extraction_strength, retain/probability and retain/knowmem.
    - `passes`: each halves the interval that contains α. Six find it to 1/64; forgetting hardly differs
      within it.
    """

    share: float = 0.95
    metric: str | None = None
    passes: int = 6


def check(options: Options, config: RunConfig) -> list[str]:
    problems = []
    if not 0 < options.share <= 1:
        problems.append(f"share={options.share}: give a share of the target's retention, above 0 and up to 1")
    if not 1 <= options.passes <= 20:
        problems.append(f"passes={options.passes}: give a number from 1 to 20")
    if config.method.intervention is not None:
        problems.append(
            f"share: method {config.method.name} edits what the model computes, and leaves no weights to mix "
            "with the target's: leave this variant out"
        )
    return problems + _metric(options, config)


def _metric(options: Options, config: RunConfig) -> list[str]:
    """Return why the chosen benchmarks do not give a metric of retention, if so."""
    has = available(config.dataset)
    names = config.eval.benchmarks
    keys = [key for name in names for key in metrics_of(name, has, benchmark_options(config, name))]
    if not keys:  # refused by the check of the benchmarks
        return []
    if options.metric is not None and not can_be(options.metric, keys):
        near = did_you_mean(options.metric, keys)
        return [f"metric={options.metric}: the benchmarks, with their options, give no such number{near}"]
    declared = None if options.metric is None else info(options.metric).declared
    if declared is not None and declared.better is not Better.HIGHER:
        return [
            f"metric={options.metric} does not say what is kept (docs/metrics.md says which way a metric is "
            "better): choose one that is better if higher, such as that of the retain set"
        ]
    if options.metric is None and not any(key.endswith(f"/{end}") for end in PREFERRED for key in keys):
        return [
            f"metric is not set, and the benchmarks give no {' or '.join(PREFERRED)}: set it to a metric of "
            f"retention (of: {', '.join(keys)})"
        ]
    return []


def warnings(options: Options, config: RunConfig) -> list[str]:
    """Say that a run without an unlearned model has nothing to mix."""
    if config.method.makes_model and config.method.start == "target":
        return []
    return [
        f"measures nothing here, since method={config.method.name} makes no model to mix with a target; "
        "choose a method that unlearns"
    ]


def identity(options: Options) -> Any:
    return options.model_dump()


def settings(config: RunConfig) -> Any:
    """Return how mixtures are rounded, so that those that were rounded to the nearest are made again."""
    return {"rounded": "randomly"} if config.hardware.dtype == "bf16" else None


def measure(bench: Workbench, options: Options) -> dict[str, float]:
    """Return `calibrated/<benchmark key>` at that α, `calibrated/alpha`, and `calibrated/retention`.

    Retention is the metric as a share of the target's. Where `eval.select` divides the sets, the same of the
    selection items under `calibrated/selection/…`, with an α of their own: a setting that is chosen by them
    has not seen what is reported. Empty where there is no target to mix with (for a target or a retain model
    itself).

    Raises:
        UserError: the models do not fit together, or no metric of retention is known.
    """
    if not bench.has_target:
        log.info("calibrated: there is no target to mix this model with")
        return {}
    metrics = _measure(bench, options, "calibrated")
    if bench.selecting is not None:
        metrics |= _measure(bench.selecting, options, "calibrated/selection")
    return metrics


def _measure(bench: Workbench, options: Options, label: str) -> dict[str, float]:
    known = {1.0: _of_benchmarks(bench.results), 0.0: _of_benchmarks(bench.target_results)}
    if not known[0.0]:
        known[0.0] = _probe(bench, label, 0.0, options.metric)
        whole = {}
    else:
        whole = known[0.0]
    metric = options.metric or preferred(known[0.0])
    goal = _value(known[0.0], metric)
    if not goal > 0:
        raise UserError(
            f"eval.variants.calibrated: the target's {metric} is {goal}, of which no share can be kept: "
            "set eval.variants.calibrated.metric to another"
        )

    def retention(alpha: float) -> float:
        metrics = known.get(alpha, {})
        return _value(metrics if metric in metrics else _probe(bench, label, alpha, metric), metric) / goal

    retentions: dict[float, float] = {}
    alpha = largest(lambda a: retentions.setdefault(a, retention(a)) >= options.share, options.passes)
    final = known[1.0] if alpha == 1 else whole if alpha == 0 else {}
    if not final:
        final = _scored(bench, alpha, f"{label}/{alpha}", ROLES)
    return prefixed(label, final) | {
        f"{label}/alpha": alpha,
        f"{label}/retention": retentions.get(alpha, 1.0),
    }


def largest(holds: Callable[[float], bool], passes: int) -> float:
    """Return the largest α in [0, 1] where a condition holds that holds at 0: 1, or by bisection."""
    if holds(1.0):
        return 1.0
    low, high = 0.0, 1.0
    for _ in range(passes):
        middle = (low + high) / 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def preferred(metrics: Mapping[str, float]) -> str:
    """Return the key of the preferred metric of retention.

    Raises:
        UserError: none of the metrics is one.
    """
    for end in PREFERRED:
        for key, value in metrics.items():
            if key.endswith(f"/{end}") and value is not None and not math.isnan(value):
                return key
    raise UserError(
        "eval.variants.calibrated.metric is not set, and the benchmarks give no "
        f"{' or '.join(PREFERRED)}: set it to a metric of retention (of: {', '.join(metrics) or 'none'})"
    )


@contextmanager
def mixed(bench: Workbench, alpha: float) -> Iterator[tuple[nn.Module, bool]]:
    """Yield the mixed model as `Workbench.held` does; the target is in memory only while they are mixed."""
    with bench.held("unlearned" if alpha else "target") as (model, collective):
        if 0 < alpha < 1:
            with bench.held("target") as (target, _):
                mix(model, target, alpha, bench.editing)
                del target
        yield model, collective


def mix(
    model: nn.Module, target: nn.Module, alpha: float,
    editing: Callable[[nn.Module], AbstractContextManager[Any]] = nullcontext,
) -> None:  # fmt: skip
    """Replace the model's floating tensors by α·model + (1 − α)·target, module by module in fp32.

    In bf16 the mixture is rounded at random, by the same draws for every α. Unlearned weights are often a
    step or two from the target's: rounded to the nearest, all of these would move at one α, none between.
    `editing` makes the parameters of a module whole, as in `Workbench`.

    Raises:
        UserError: they differ in a tensor, or edits are attached.
    """
    own, theirs = _shapes(model), _shapes(target)
    other = [name for name in own.keys() | theirs.keys() if own.get(name) != theirs.get(name)]
    if other or attached(model) or attached(target):
        raise UserError(
            "eval.variants.calibrated: the unlearned model and the target cannot be mixed, "
            + (f"they differ in {min(other)}" if other else "edits are attached to them")
            + "; leave this variant out"
        )
    others = dict(target.named_modules())
    draws: dict[torch.device, torch.Generator] = {}
    done: set[int] = set()  # tied weights are one tensor in two modules
    for name, module in model.named_modules():
        tensors = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
        new = [key for key, tensor in tensors if _full(name, key) in own and id(tensor) not in done]
        if not new:
            continue
        with editing(module), editing(others[name]):
            for key in new:
                tensor = getattr(module, key).detach()
                if tensor.is_floating_point():
                    other = getattr(others[name], key).detach().to(tensor.device)
                    mixture = torch.lerp(other.float(), tensor.float(), alpha)
                    if tensor.dtype == torch.bfloat16:
                        device = tensor.device
                        generator = draws.setdefault(device, torch.Generator(device).manual_seed(0))
                        mixture = randomly_rounded(mixture, generator)
                    tensor.copy_(mixture)
        done.update(id(getattr(module, key)) for key in new)


def randomly_rounded(values: Tensor, generator: torch.Generator) -> Tensor:
    """Round finite fp32 values to one of the two nearest bf16 numbers, so that each is right on average."""
    draws = torch.randint(
        1 << 16, values.shape, generator=generator, device=values.device, dtype=torch.int32
    )  # fmt: skip
    # bf16 is the upper half of fp32: a draw carries into it as often as the lower half is large.
    return ((values.view(torch.int32) + draws) & -(1 << 16)).view(torch.float32)


def _full(module: str, key: str) -> str:
    return f"{module}.{key}" if module else key


def _shapes(model: nn.Module) -> dict[str, torch.Size]:
    """Return the shapes of all stored tensors, of shared-out parameters the whole ones."""
    return {
        name: getattr(tensor, "ds_shape", tensor.shape)
        for name, tensor in model.state_dict(keep_vars=True).items()
    }


def _scored(
    bench: Workbench, alpha: float, label: str, roles: Sequence[Role], only: str | None = None
) -> dict[str, float]:
    with mixed(bench, alpha) as (model, collective):
        return bench.score(model, label, roles, collective_forward=collective, only=only)


def _probe(bench: Workbench, label: str, alpha: float, metric: str | None) -> dict[str, float]:
    roles: tuple[Role, ...] = ("retain",) if metric is None or "retain" in metric else ("retain", "utility")
    return _scored(bench, alpha, f"{label}/probe-{alpha}", roles, only=metric)


def _value(metrics: Mapping[str, float], metric: str) -> float:
    value = metrics.get(metric)
    if value is None or math.isnan(value):
        raise UserError(
            f"eval.variants.calibrated.metric={metric}: the benchmarks give no such number "
            f"(they give: {', '.join(metrics) or 'none'})"
        )
    return value


def _of_benchmarks(results: Mapping[str, float]) -> dict[str, float]:
    """Return those of a run's flat results that its benchmarks gave for the model as it is."""
    return {
        key: value
        for key, value in results.items()
        if info(key).is_metric and not info(key).variant and info(key).benchmark != PREFIX
    }
