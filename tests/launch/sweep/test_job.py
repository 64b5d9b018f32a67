"""What a job says of the models that it made."""

from __future__ import annotations

import pytest
from rich.console import Console

from launch.sweep.job import _print_unlearned


@pytest.mark.parametrize(("probability", "warned"), [(0.33, True), (0.98, False), (None, False)])
def test_a_target_that_has_not_learned_is_warned_of(capsys, probability, warned):
    _print_unlearned(Console(), {"tofu/forget/probability": probability})
    assert ("raise model.finetune.epochs or model.finetune.lr" in capsys.readouterr().out) == warned
