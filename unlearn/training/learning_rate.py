"""How many steps a training has, and the learning rate at each: functions of the configuration alone."""

from __future__ import annotations

import math

from unlearn.config import MethodConfig
from unlearn.errors import UserError
from unlearn.terms import two_warmups


def total_steps(method: MethodConfig, steps_per_epoch: int) -> int:
    """Optimizer steps of a training."""
    return method.steps or max(1, math.ceil(method.epochs * steps_per_epoch))


def warmup_steps(method: MethodConfig, steps_per_epoch: int, key: str = "method") -> int:
    """Optimizer steps of the linear warm-up, fewer than the training has.

    In epochs, in steps or as a share of all steps (rounded down), whichever is given; where none is, one
    epoch, at most half of the training.

    Raises:
        UserError: more than one of the three is given, or no step is left at the peak rate; `key` is where
            the method stands in the configuration.
    """
    total, given = total_steps(method, steps_per_epoch), method.warmup
    if not given:
        return min(steps_per_epoch, total // 2)
    if len(given) > 1:
        raise UserError(two_warmups(method, key))
    ((name, value),) = given.items()
    match name:
        case "warmup_epochs":
            steps = round(value * steps_per_epoch)
        case "warmup_share":
            steps = int(value * total + 1e-9)
        case _:
            steps = int(value)
    if steps >= total:
        length = f" ({steps_per_epoch} steps an epoch)" if name == "warmup_epochs" else ""
        raise UserError(
            f"{key}.{name}={value:g} is {steps} steps{length} and the training has {total}: "
            f"none would be left at the peak learning rate. Give {key}.{name}=0 or fewer than {total} steps, "
            "or train longer"
        )
    return steps


def schedule_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """The share of the peak learning rate at a step counted from 0.

    Linear warm-up over `warmup` steps, the first of which already moves; then constant, or down to 0 at
    `total`. A function of the step alone, so there is nothing to save and restore.
    """
    if step < warmup:
        return (step + 1) / warmup
    left = (total - step) / (total - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (1 - left)))
    return left if schedule == "linear" else 1.0
