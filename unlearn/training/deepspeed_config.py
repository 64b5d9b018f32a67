"""DeepSpeed's configuration; needs no import of DeepSpeed."""

from __future__ import annotations

from typing import Any

from unlearn.config import HardwareConfig


def keeps_remainders(hardware: HardwareConfig) -> bool:
    """Return whether the optimizer keeps fp32 masters as bf16 weights and remainders, without ZeRO."""
    return hardware.dtype == "bf16" and hardware.gradients == "bf16" and hardware.zero == 0


def stage_of(hardware: HardwareConfig) -> int:
    """Return the ZeRO stage in use.

    With bf16, stages 0 and 1 become 2 (the same on one process), unless the optimizer keeps remainders: fp32
    master weights need ZeRO, and for stage 1 with fp32 gradients DeepSpeed uses another optimizer.
    """
    if hardware.dtype == "bf16" and not keeps_remainders(hardware):
        return max(hardware.zero, 2)
    return hardware.zero


def shards_models(hardware: HardwareConfig) -> bool:
    """Return whether no device needs room for a whole model: ZeRO 3 shares it out or keeps it in the host."""
    return hardware.zero == 3 and (hardware.processes > 1 or hardware.offload)


def deepspeed_config(hardware: HardwareConfig, *, clip: float) -> dict[str, Any]:
    """Return DeepSpeed's configuration for the `hardware` section.

    `managed_gradient_accumulation` is off: the trainer chooses the number of micro-batches in a step, which
    varies with their lengths. With remainders, DeepSpeed gets a model in bf16 and an optimizer for it, and is
    told of no precision: it would make fp32 copies.
    """
    half = hardware.dtype == "bf16" and not keeps_remainders(hardware)
    zero: dict[str, Any] = {"stage": stage_of(hardware), "overlap_comm": False}
    if hardware.offload:
        zero["offload_optimizer"] = {"device": "cpu"}
    if zero["stage"] == 3:
        zero["stage3_param_persistence_threshold"] = 10_000
        if hardware.offload:
            zero["offload_param"] = {"device": "cpu"}
    return {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "train_batch_size": hardware.processes,
        "managed_gradient_accumulation": False,
        "gradient_clipping": clip,
        "zero_optimization": zero,
        "bf16": {"enabled": half},
        **({"data_types": {"grad_accum_dtype": hardware.gradients}} if half else {}),
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
