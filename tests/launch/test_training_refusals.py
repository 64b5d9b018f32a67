"""What of a training cannot work is refused before anything is made: gradients and warm-ups."""

from __future__ import annotations

from pathlib import Path

import pytest

from launch.compose import checked, compose_run, force_overrides
from launch.inspection import inspect
from launch.run.plan import make_plan
from launch.validate import warnings_of
from tests.refusals import Refused, check_refusal

pytestmark = pytest.mark.slow  # many commands

# An epoch of the embedded authors' forget10 is two steps of 32.
CASES = {
    "trained behind the loss": Refused(
        ("method=rmu", "method.train=['*.layers.[123].mlp.down_proj.weight']"),
        ("method.train=*.layers.[123].mlp.down_proj.weight: trains model.layers.2.mlp", "layer 2"),
    ),
    "adapters behind the loss": Refused(
        ("method=rmu", "model.lora.r=2", "model.lora.targets=[layers.3.mlp.up_proj]"),
        ("model.lora.targets=layers.3.mlp.up_proj", "model.layers.3.mlp.up_proj", "no gradient"),
    ),
    "warm-up as long as the run": Refused(
        ("method=npo", "method.steps=2", "method.warmup_epochs=1"),
        ("method.warmup_epochs=1 is 2 steps", "the training has 2", "method.warmup_epochs=0"),
    ),
    "warm-up of the target": Refused(
        ("model.finetune.warmup_share=null", "model.finetune.warmup_steps=700"),
        ("model.finetune.warmup_steps=700 is 700 steps and the training has 700",),
    ),
    "two warm-ups": Refused(
        ("method=npo-wmdp", "method.warmup_epochs=1"),
        ("method.warmup_epochs=1 and method.warmup_share=0.1", "method.warmup_share=null"),
    ),
    "two warm-ups of the reinforced model": Refused(
        ("method=whp", "method.reinforced.warmup_share=0.1"),
        ("method.reinforced.warmup_epochs=0 and method.reinforced.warmup_share=0.1",),
    ),
    "differences of gradients in bf16": Refused(
        ("method=npo-gp-wmdp", "hardware.dtype=bf16"),
        ("method.smooth.name=penalty: takes differences of gradients", "set hardware.dtype=fp32"),
    ),
    "an option of another smoothing": Refused(
        ("method=npo-sam-wmdp", "method.smooth.name=random", "method.smooth.rho=0.5"),
        ("method.smooth.rho=0.5", "has no option rho", "'~method.smooth.rho'"),
    ),
    "nothing to smooth": Refused(
        ("method=finetune", "method.smooth.name=sam"),
        ("method.smooth.name=sam: smooths the forget loss", "method.forget or method.template"),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_refused(case: str, tmp_path: Path) -> None:
    check_refusal(tmp_path, CASES[case])


def warnings(root: Path, *arguments: str) -> list[str]:
    config = checked(compose_run(force_overrides([f"root={root}", *arguments])))
    return inspect(config, make_plan(config))


@pytest.mark.parametrize(
    "arguments",
    [
        ("method=npo", "method.steps=1"),
        ("model.finetune.epochs=1",),
        ("method=rmu", "model.lora.r=2"),
        ("method=rmu-wmdp", "model.nano.layers=8"),
    ],
    ids=" ".join,
)
def test_quick_tries_and_presets_go_through(arguments: tuple[str, ...], tmp_path: Path) -> None:
    assert warnings(tmp_path, *arguments) == []


def test_a_rule_that_never_starts_is_reported(tmp_path: Path) -> None:
    (warning,) = warnings(tmp_path, "method=pdu", "method.epochs=5")
    assert warning.startswith("method.rule.warmup_epochs=5: the training has 5 epochs")


def test_a_weight_without_its_term_is_reported() -> None:
    def reported(*arguments: str) -> list[str]:
        return warnings_of(checked(compose_run(force_overrides(arguments))))

    (warning,) = reported("method=idk", "method.forget_weight=0.1")
    assert warning == "method.forget_weight=0.1: has no effect, since the method has no forget term"
    assert reported("method=idk", "method.template_weight=0.1") == []
