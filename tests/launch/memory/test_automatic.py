"""hardware.micro_tokens=auto: a number from the estimate, the same on all processes, and no other run."""

from __future__ import annotations

import pytest

from launch.memory.automatic import agreed, free_gib, most_tokens, with_micro_tokens
from launch.memory.command import composed, fits, llama
from launch.memory.estimate import Load, estimate
from launch.run.plan import make_plan
from unlearn.distributed import World

AUTO = "hardware.micro_tokens=auto"


@pytest.mark.parametrize(("rank", "gib"), [(0, 180), (16, 80), (16, 40), (16, 24)])
def test_it_is_the_largest_power_of_two_whose_estimate_fits(rank, gib):
    config, shape = composed("hardware=gpu", "dry_run=true"), llama("8B", rank)

    def taken(tokens: int) -> bool:
        return fits(estimate(shape, config, Load(tokens, config.dataset.max_length, tokens)), gib)

    tokens = most_tokens(shape, config, gib)
    assert tokens.bit_count() == 1
    assert 512 <= tokens < 32768
    assert taken(tokens)
    assert not taken(2 * tokens)
    assert most_tokens(shape, config, 10_000) == 32768
    assert most_tokens(shape, config, 1) == 512  # nothing fits: an error will say so, if it is true


def test_a_number_of_ones_own_stays():
    config = composed("hardware=gpu", "hardware.micro_tokens=3000", "dry_run=true")
    assert with_micro_tokens(config, 80) == config


def test_processes_share_the_memory_of_a_host():
    one, two = composed(AUTO), composed(AUTO, "hardware.processes=2")
    assert 0 < free_gib(two) < 0.8 * free_gib(one)  # about a half: other programs take some
    assert agreed(one, World()).hardware.micro_tokens == 1024  # on a CPU, and nano is small


def test_it_is_the_same_run():
    auto, number = composed(AUTO), composed("hardware.micro_tokens=64")
    assert make_plan(auto).main.directory == make_plan(number).main.directory


def test_a_dry_run_says_the_number(capsys, tmp_path):
    from rich.console import Console

    from launch.dry_run import show_plan
    from launch.resolve import resolve

    config = composed(f"root={tmp_path}", "dataset.options.authors=10", "eval=none", "dry_run=true", AUTO)
    show_plan(resolve(config), Console(width=200))
    assert "hardware.micro_tokens=auto, by the free memory here: build the target: 1024, run: 1024" in (
        capsys.readouterr().out
    )
