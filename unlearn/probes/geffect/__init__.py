"""The G-effect: how a step of the objective changes the risk on the forget and on the retain set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from unlearn.config import RunConfig, Section
from unlearn.probes._base import Probe, WatchedRun

if TYPE_CHECKING:
    from unlearn.training.observers import ProbeContext


class GeffectOptions(Section):
    """The keys of `probe` with `name: geffect`."""

    examples: PositiveInt | None = Field(
        32,
        description="gradients are means over so many examples of each set: one fixed sample for the "
        "objective and another, disjoint one for the risk; null, or a set of fewer than twice as many: over "
        "all of it for both",
    )
    mode: Literal["exact", "running"] = Field(
        "exact",
        description="running: over mini-batches, 0.6 · old mean + 0.4 · new, as in the released code",
    )
    points: NonNegativeInt = Field(
        8, description="examples of each risk's sample that are measured one by one"
    )
    tokens: bool = Field(True, description="also measure by answer token")
    token_layers: bool = Field(False, description="by answer token, also for each group of layers")
    grid: NonNegativeInt = Field(
        4, description="effects of so many forget examples on so many retain examples; 0: no grid"
    )
    check: bool = Field(True, description="compare the prediction with the change by one small step")
    step: PositiveFloat = Field(0.1, description="length of that step, in steps of AdamW at the peak rate")
    second_order: bool = Field(False, description="also predict this change to second order")
    trust: float = Field(
        0.9, le=1, description="share of the change that the prediction must explain to count as trusted"
    )
    boundaries: tuple[float, float] = Field(
        (1 / 3, 2 / 3), description="starts of middle and deep layers: fractions of the depth, or layers"
    )


class Geffect(Probe):
    """The effect ⟨∇R(D), ∇L⟩ of an objective L on the risk R of each set D (arXiv 2502.19301, definition 1).

    `measurement.py` computes it. Its tables are in `geffect/step-N/` of the run's directory.
    """

    Options = GeffectOptions
    sets = ("forget",)

    def __init__(self, options: GeffectOptions, run: WatchedRun) -> None:
        # With DeepSpeed, which a check does not need.
        from unlearn.probes.geffect.measurement import Measurement

        super().__init__(options, run)
        self.measurement = Measurement(options, run, run.directory / "geffect")

    @classmethod
    def check(cls, options: Any, config: RunConfig) -> list[str]:
        problems = _boundaries(options.boundaries, config)
        if options.second_order and config.hardware.dtype == "bf16":
            problems.append(
                "second_order=True: belongs to the check by a small step, which rounds away with "
                "hardware.dtype=bf16; set hardware.dtype=fp32"
            )
        return problems

    def begin(self) -> None:
        self.measurement.start.keep()

    def measure(self, context: ProbeContext) -> dict[str, float]:
        return self.measurement.measure(context)


def _boundaries(bounds: Sequence[float], config: RunConfig) -> list[str]:
    """Check that the starts of middle and deep layers increase and lie in the model."""
    from unlearn.models.load import depth

    layers = depth(config.model)
    starts = [each * (layers or 1) if each < 1 else each for each in bounds]
    comparable = layers is not None or (bounds[0] < 1) == (bounds[1] < 1)
    if (
        bounds[0] < 0
        or (comparable and starts[0] >= starts[1])
        or (layers is not None and starts[1] > layers)
    ):
        model = "the model" if layers is None else f"the model's {layers}"
        return [
            f"boundaries={list(bounds)}: deep layers must begin after middle ones; set two increasing "
            f"numbers, fractions of the depth (from 0 to below 1) or layers of {model}"
        ]
    return []
