"""What the configuration alone cannot show: rows, tokenizers and model shapes. Weights stay unread."""

from __future__ import annotations

from launch.model_inspection import inspect_models
from launch.plan import Plan
from launch.processes import is_complete
from unlearn.config import RunConfig


def inspect(config: RunConfig, plan: Plan) -> list[str]:
    """Read the data and the model's description before anything is trained.

    Nothing is read when every run of the plan is complete.

    Returns:
        Warnings: the run is possible, but perhaps not what was meant.

    Raises:
        UserError: the data or the model make the run impossible.
    """
    if all(is_complete(run) for run in plan.runs):
        return []
    return [*_rows(config), *_tokens(config, plan)]


def _rows(config: RunConfig) -> list[str]:
    """Every row of every set that the run reads: columns, types, overlap of forget and retain set."""
    return []


def _tokens(config: RunConfig, plan: Plan) -> list[str]:
    """Tokenizer and prompt format, and token ids and lengths against vocabulary and positions."""
    return inspect_models(config, plan)
