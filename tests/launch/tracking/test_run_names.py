"""What a dashboard calls a run."""

from __future__ import annotations

import pytest

from launch.compose import checked, compose_run, force_overrides
from launch.tracking import run_names as labels

ABOUT = "authors forget10 nano"
FIVE = ["method.steps=9", "method.batch=8", "method.clip=0", "method.lr=1e-4", "method.epochs=1"]


@pytest.mark.parametrize(
    ("overrides", "role", "kind", "title"),
    [
        (["method=npo"], "run", "unlearn", f"npo {ABOUT} seed 0"),
        (["method.retain=none", "seed=3"], "run", "unlearn", f"npo {ABOUT} retain=none seed 3"),
        (["method.retain=kl"], "run", "unlearn", f"npo {ABOUT} retain=kl seed 0"),
        (["method=rmu", "method.forget.layer=2"], "run", "unlearn", f"rmu {ABOUT} layer=2 seed 0"),
        (FIVE, "run", "unlearn", f"npo {ABOUT} lr=0.0001 batch=8 epochs=1 steps=9 … seed 0"),
        (["method.name=mine", "method.lr=1"], "run", "unlearn", f"mine {ABOUT} seed 0"),  # no such preset
        (["method=npo"], "unlearn forget01", "unlearn", f"npo {ABOUT}"),
        (["method=finetune"], "run", "finetune", "finetune authors full nano seed 0"),
        (["method=finetune"], "build the target", "finetune", "build the target authors full nano"),
        (
            ["method=reinforce"],
            "build the reinforced model",
            "finetune",
            f"build the reinforced model {ABOUT}",
        ),
        (["method=none"], "run", "evaluate", f"evaluate {ABOUT}"),
        (["method=none"], "evaluate the target", "evaluate", f"evaluate the target {ABOUT}"),
        (["method=none", "probe=geffect", "probe.method=npo"], "run", "probe", f"probe {ABOUT}"),
    ],
)
def test_kind_and_name(overrides, role, kind, title):
    config = checked(compose_run(force_overrides(overrides)))
    assert labels.kind(config, role) == kind
    assert labels.title(config, role) == title
    assert all(labels.tags(config, role))


def test_the_models_that_others_are_compared_with_have_a_tag():
    config = checked(compose_run(["method=none", "++dataset.forget='/data/my set/forget_1.json'"]))
    about = ["nano", "authors", "forget_1", "none"]
    assert labels.tags(config, "evaluate the retain model") == [*about, "retain model"]
    assert labels.tags(config, "build the target") == [*about, "target"]
    assert labels.tags(config, "run") == about
