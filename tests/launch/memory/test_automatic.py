"""`auto` in hardware: values from the estimate, the same on all processes, and no other run."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from rich.console import Console

from launch.dry_run import show_plan
from launch.memory.automatic import agreed, decide, fits, free_gib, gradient_tokens, limit_to_share, settle
from launch.memory.command import composed, llama
from launch.memory.estimate import Load, bound, captured, estimate
from launch.resolve import resolve
from launch.run.plan import make_plan
from unlearn.config import HardwareConfig
from unlearn.distributed import World
from unlearn.run_dir import RunDir

BOTH = ("hardware.micro_tokens=auto", "hardware.activation_checkpointing=auto")


def gpu(*overrides):
    return composed("method=npo", "hardware=gpu", "method.batch=256", *overrides, "dry_run=true")


def changed(config, **keys):
    return config.model_copy(update={"hardware": config.hardware.model_copy(update=keys)})


def fitting(config, gib, **keys):
    made = changed(config, **keys)
    return fits(estimate(llama("8B", 16), made, bound(made)), gib)


@pytest.mark.parametrize("recompute", [True, False])
@pytest.mark.parametrize("gib", [180, 80, 40])
def test_it_is_the_largest_power_of_two_whose_estimate_fits(gib, recompute):
    config = gpu(f"hardware.activation_checkpointing={recompute}")
    tokens = decide(llama("8B", 16), config, gib).hardware.tokens
    assert tokens.bit_count() == 1
    assert 512 <= tokens <= 32768
    assert fitting(config, gib, micro_tokens=tokens)
    assert tokens == 32768 or not fitting(config, gib, micro_tokens=2 * tokens)
    assert decide(llama("8B", 16), config, 10_000).hardware.tokens == 32768
    assert decide(llama("8B", 16), config, 1).hardware.tokens == 512  # nothing fits: an error will say so


@pytest.mark.parametrize(("gib", "on"), [(22, True), (80, False)])
def test_activations_are_recomputed_where_portions_would_be_small(gib, on):
    config = gpu()
    made = decide(llama("8B", 16), config, gib).hardware
    assert made.activation_checkpointing is on
    enough = fitting(config, gib, activation_checkpointing=False, micro_tokens=4096)
    assert enough is not on
    assert fitting(config, gib, activation_checkpointing=on, micro_tokens=made.tokens)


@pytest.mark.parametrize(("gib", "on"), [(40, True), (180, False)])
def test_a_given_number_stays(gib, on):
    config = gpu("hardware.micro_tokens=16384")
    made = decide(llama("8B", 16), config, gib).hardware
    assert (made.tokens, made.activation_checkpointing) == (16384, on)
    assert fitting(config, gib, activation_checkpointing=False) is not on
    fixed = gpu("hardware.micro_tokens=3000", "hardware.activation_checkpointing=false")
    assert settle(fixed, 80) == (fixed, "")


def test_an_evaluations_backward_fits_without_recomputing():
    shape, config = (
        llama("8B"),
        composed("method=npo", "hardware=gpu-80gb", "method.batch=256", "dry_run=true"),
    )
    made = decide(shape, config, 80)
    assert (made.hardware.tokens, made.hardware.activation_checkpointing) == (16384, True)
    tokens = gradient_tokens(shape, made, 80)
    # 15 GiB of weights, 45 of gradients and optimizer; some 6 MiB for each token
    assert tokens == 1024
    assert captured(shape, made.hardware, Load(tokens, 512, tokens)) / tokens == pytest.approx(
        6.6 * 2**20, rel=0.05
    )
    assert gradient_tokens(shape, made, 10_000) == 16384
    # a training of few matrices keeps few activations, gradient norms all of them
    few = replace(shape, trained=10**8, learned=frozenset({"down"}), head_learned=False, first=28)
    made = decide(few, config, 80)
    assert gradient_tokens(few, made, 80) < made.hardware.tokens == 32768


def test_processes_share_the_memory_of_a_host():
    one, many = composed(*BOTH), composed(*BOTH, "hardware.processes=8")
    assert 0 < free_gib(many) < 0.5 * free_gib(one)  # about an eighth: other programs take some meanwhile


def test_a_run_that_goes_on_keeps_what_was_decided(tmp_path):
    config, rundir = composed(*BOTH), RunDir(tmp_path)
    made, why = agreed(config, World(), rundir)
    assert made.hardware.micro_tokens == 1024  # on a CPU, and nano is small
    assert made.hardware.activation_checkpointing is False
    assert made.hardware.gradient_tokens == 1024
    assert why.startswith(
        "hardware.micro_tokens=1024 hardware.activation_checkpointing=false (by the estimate"
    )
    rundir.write_decided(config.hardware, {"micro_tokens": 512, "activation_checkpointing": True})
    assert agreed(config, World(), rundir)[0] == made  # nothing was trained with it yet
    rundir.write_decided(config.hardware, {"micro_tokens": 512, "activation_checkpointing": True})
    rundir.write_memory(config.hardware, {"eval_tokens": 64}, 1)
    rundir.save_checkpoint(1, [], {}, keep=1, write=True)
    kept, why = agreed(config, World(), rundir)
    assert (kept.hardware.micro_tokens, kept.hardware.activation_checkpointing, why) == (512, True, "")
    assert rundir.read_memory(config.hardware) == ({"eval_tokens": 64}, 1)
    other = changed(config, threads=3)
    assert agreed(other, World(), rundir)[0].hardware.micro_tokens == 1024


def test_it_is_the_same_run():
    auto, number = composed(*BOTH), composed("hardware.micro_tokens=64")
    assert make_plan(auto).main.directory == make_plan(number).main.directory


def test_a_dry_run_says_what_is_decided(capsys, tmp_path):
    config = composed(f"root={tmp_path}", "dataset.options.authors=10", "eval=none", "dry_run=true", *BOTH)
    show_plan(resolve(config), Console(width=200))
    shown = capsys.readouterr().out
    for role in ("build the target", "run"):
        assert f"{role}: hardware.micro_tokens=1024 hardware.activation_checkpointing=false" in shown


@pytest.mark.parametrize("method", ["none", "whp"])
def test_nothing_is_said_where_nothing_is_trained(method):
    made, why = settle(composed(f"method={method}", *BOTH), 80)
    assert made.hardware.micro_tokens == 1024
    assert why == ""


def test_a_job_that_shares_no_gpu_is_not_limited(monkeypatch):
    for name in ("set_per_process_memory_fraction", "mem_get_info"):
        monkeypatch.setattr(torch.cuda, name, lambda *_: pytest.fail("reached CUDA"))
    limit_to_share(HardwareConfig(device="cpu", jobs_per_gpu=4))
    limit_to_share(HardwareConfig(device="cuda"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_job_that_shares_a_gpu_takes_its_part_and_no_more():
    limit_to_share(HardwareConfig(device="cuda", jobs_per_gpu=4))
    try:
        _, total = torch.cuda.mem_get_info()
        torch.empty(total // 5, dtype=torch.uint8, device="cuda")
        with pytest.raises(torch.OutOfMemoryError):
            torch.empty(total // 4, dtype=torch.uint8, device="cuda")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
