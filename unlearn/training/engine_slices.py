"""Give each process of ZeRO 3 its part of a model's parameters, read from the files."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import deepspeed
import torch
import torch.distributed as dist
from deepspeed import comm
from deepspeed.runtime.zero.parameter_offload import FWD_MODULE_STACK
from deepspeed.runtime.zero.partition_parameters import is_zero_param
from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator
from torch import nn

from unlearn.models import stored

_PARAMETERS_TO_RELEASE = "_PartitionedParameterCoordinator__params_to_release"


class _Sliced(deepspeed.zero.Init):
    """DeepSpeed's partitioning, for parameters that every process can read by itself.

    Of a whole module DeepSpeed moves each parameter to the device, whole, and sends it from the first
    process to all others. Of a deferred parameter each process reads its part only.
    """

    def _convert_to_zero_parameters(self, param_list: Iterable[nn.Parameter]) -> None:
        for parameter in param_list:
            value = stored.stored(parameter)
            if value is None:
                parameter.data = parameter.data.to(self.dtype)
                super()._convert_to_zero_parameters([parameter])
            elif not is_zero_param(parameter):
                self._read(parameter, value)

    def _read(self, parameter: Any, value: torch.Tensor) -> None:
        parameter.data = value
        stored.forget(parameter)
        self._convert_to_deepspeed_param(parameter)
        parameter.partition()  # copies the part in the file's dtype
        parameter.ds_tensor.data = parameter.ds_tensor.data.to(self.dtype)
        parameter.data = torch.empty(0, dtype=self.dtype, device=self.local_device)


def partition(model: nn.Module, device: torch.device, config: Mapping[str, Any]) -> None:
    """Partition a model in place as DeepSpeed's engine with this configuration would. A collective."""
    if not comm.is_initialized():  # else its configuration is of one process
        comm.init_distributed(dist.get_backend(), auto_mpi_discovery=False, verbose=False)
    _Sliced(module=model, config_dict_or_path=dict(config))
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def whole_parameters(module: nn.Module, *, changed: bool = False) -> AbstractContextManager[None]:
    """Return a context in which a module's parameters are whole, to be read; a collective at ZeRO 3.

    `changed`: to be written as well; the values of the main process count.
    """
    parameters = list(module.parameters())
    if not any(is_zero_param(parameter) for parameter in parameters):
        return nullcontext()
    gathered: AbstractContextManager[None] = deepspeed.zero.GatheredParameters(
        parameters, modifier_rank=0 if changed else None
    )
    return gathered


def release(engine: Any) -> None:
    """Remove DeepSpeed's hooks from a model, and what DeepSpeed keeps of it, so that it can be freed."""
    engine.destroy()
    own = set(engine.module.modules())  # at ZeRO 3 DeepSpeed keeps the model, and those whose forward failed
    FWD_MODULE_STACK[:] = [each for each in FWD_MODULE_STACK if each not in own]
    # A cache of all ZeRO-3 engines has them as keys. It is decorated again, so that only a closure has it.
    cached = getattr(PartitionedParameterCoordinator, _PARAMETERS_TO_RELEASE, None)
    for cell in getattr(cached, "__closure__", None) or ():
        if clear := getattr(cell.cell_contents, "cache_clear", None):
            clear()
