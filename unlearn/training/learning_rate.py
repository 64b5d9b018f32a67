"""The number of steps of a training and the learning rate at each, from the configuration alone."""

from __future__ import annotations

import math

from unlearn.config import MethodConfig
from unlearn.errors import UserError
from unlearn.terms import two_warmups


def total_steps(method: MethodConfig, steps_per_epoch: int) -> int:
    """Return the number of optimizer steps of a training."""
    return method.steps or max(1, math.ceil(method.epochs * steps_per_epoch))


def warmup_steps(method: MethodConfig, steps_per_epoch: int, key: str = "method") -> int:
    """Return the number of optimizer steps of the linear warm-up, fewer than those of the training.

    The method sets it in epochs, in steps or as a share of all steps (rounded down). The default is one
    epoch, at most half of the training. `key` is the method's key in the configuration, for messages.

    Raises:
        UserError: the method sets more than one of the three, or no step is left at the peak rate.
    """
    total, warmup = total_steps(method, steps_per_epoch), method.warmup
    if not warmup:
        return min(steps_per_epoch, total // 2)
    if len(warmup) > 1:
        raise UserError(two_warmups(method, key))
    ((name, value),) = warmup.items()
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
            f"none would be left at the peak learning rate. Set {key}.{name}=0 or fewer than {total} steps, "
            "or train longer"
        )
    return steps


def schedule_factor(step: int, total: int, warmup: int, schedule: str) -> float:
    """Return the share of the peak learning rate at a step counted from 0.

    Linear warm-up over `warmup` steps, above 0 from the first step on; then constant, or decaying to 0 at
    `total`. It depends on the step alone, so there is no state to save.
    """
    if step < warmup:
        return (step + 1) / warmup
    left = (total - step) / (total - warmup)
    if schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * (1 - left)))
    return left if schedule == "linear" else 1.0
