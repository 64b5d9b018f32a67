"""Training through Accelerate and DeepSpeed: start, backward, step, gather, restore.

The training loop reads like single-process PyTorch. Gradients are *summed* over micro-batches and processes:
the caller divides losses by global counts, so that the result does not depend on the split.
"""

from __future__ import annotations

import unlearn.environment  # noqa: F401 (before DeepSpeed)

# isort: split
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any
from weakref import WeakSet

import deepspeed
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DeepSpeedPlugin
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS
from torch import Tensor, nn
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from unlearn.config import HardwareConfig
from unlearn.distributed import World, lengthen_timeouts
from unlearn.errors import UserError
from unlearn.models import stored
from unlearn.passes.products import fast_linear_layers
from unlearn.passes.prompt_layout import all_prompt, laid_out
from unlearn.training import engine_slices
from unlearn.training.deepspeed_config import deepspeed_config, keeps_remainders
from unlearn.training.optimizer_state import OptimizerState
from unlearn.training.optimizers import ChunkedAdamW, make_optimizer
from unlearn.training.zero_partitions import ParameterSlice, Shares

# The shared-memory collectives would take minutes to compile on first use; gloo works without them. Not by
# reading the attribute: DeepSpeed would start compilers then to find out what else could be compiled.
vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
ZERO_SUPPORTED_OPTIMIZERS.append(ChunkedAdamW)  # otherwise it warns of an untested one

_OPEN: WeakSet[Engine] = WeakSet()


class NonFiniteGradient(UserError):
    """A gradient holds NaN or infinity."""


def precision(dtype: str) -> torch.dtype:
    """Return the torch dtype of `hardware.dtype`."""
    return torch.bfloat16 if dtype == "bf16" else torch.float32


class Engine:
    """A model under DeepSpeed with AdamW: call `model`; `module` is the transformers model inside."""

    def __init__(
        self, model: nn.Module, world: World, hardware: HardwareConfig, *,
        clip: float, weight_decay: float, betas: tuple[float, float], zero: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        """Prepare a model for training; `zero`: further keys of DeepSpeed's `zero_optimization`."""
        self.world = world
        config = deepspeed_config(hardware, clip=clip)
        config["zero_optimization"] |= zero or {}
        self._clip = clip
        self._norm = float("nan")
        self.zero: int = config["zero_optimization"]["stage"]
        self._offload = "offload_optimizer" in config["zero_optimization"]
        self._summed = False  # whether there is a gradient to take
        self._borrowed = 0  # number of open `with_weights` blocks
        self._taken: list[Tensor] | None = None  # the gradients collected by the running `take_gradients`
        self._lent: list[tuple[Tensor, Tensor]] = []
        self._put: Iterator[Tensor] | None = None  # replaces the summed gradient in the next step
        self._linear = nn.functional.linear
        if self.zero < 3 and not keeps_remainders(hardware):  # else the optimizer fills the model
            stored.fill(model, world.device, torch.bfloat16 if config["bf16"]["enabled"] else torch.float32)
        self._adamw = make_optimizer(
            model, hardware, weight_decay=weight_decay, betas=betas, device=world.device
        )  # fmt: skip
        if self.zero == 3:
            engine_slices.partition(model, world.device, config)
        self._accelerator = Accelerator(
            # The hook `_before_update` clips instead: taken gradients are unclipped, put ones are clipped.
            deepspeed_plugin=DeepSpeedPlugin(hf_ds_config={**config, "gradient_clipping": 0.0}),
            mixed_precision="bf16" if config["bf16"]["enabled"] else "no",
        )
        prepared, _ = self._accelerator.prepare(model, self._adamw)
        lengthen_timeouts()
        unset_hf_deepspeed_config()  # else transformers would partition models loaded later, a collective
        if not isinstance(prepared, deepspeed.DeepSpeedEngine):
            raise RuntimeError(f"Accelerate prepared a {type(prepared).__name__}, not a DeepSpeedEngine")
        self.model: Any = prepared
        self._kernels = ExitStack()
        self._kernels.enter_context(fast_linear_layers(prepared.module))
        self._shares = Shares(world, self.zero, prepared)
        self._stored = OptimizerState(self._adamw, self._shares)
        _OPEN.add(self)
        self._adamw.register_step_pre_hook(self._before_update)

    @property
    def module(self) -> Any:
        return self.model.module

    def backward(self, loss: Tensor) -> None:
        """Add the gradients of a micro-batch to the step's sum over micro-batches and processes."""
        if self._put is not None:
            raise RuntimeError("backward after put_gradients would be lost; call step first")
        if not self._summed:
            self._shares.clear()
        self._summed = True
        self.model.backward(loss * self.world.size)  # DeepSpeed averages over processes

    def discard(self) -> None:
        """Drop the gradient summed so far, also after a backward that an error ended; not at ZeRO 3."""
        self._shares.discard()
        self._summed = False

    def step(self, lr: float) -> float:
        """Clip the gradient, update, clear it. Returns the global gradient norm before clipping."""
        self._refuse_borrowed("step")
        for group in self.model.optimizer.param_groups:
            group["lr"] = lr
        if self._put is not None and not self._summed:
            self._pretend_backward()
        self._norm = float("inf")  # stays if DeepSpeed skips the update: fp32 gradients are not finite
        self.model.step()
        self._put, self._summed = None, False
        return self._norm

    def take_gradients(self) -> list[Tensor]:
        """Remove and return the gradient summed so far over micro-batches and processes. A collective.

        Returns this process's share in fp32, before clipping. Under ZeRO 1 to 3 the shares are flat, padded
        with zeros and disjoint; without ZeRO every process has the whole gradient. All lists of one engine
        have the same shapes, so that they combine element by element.

        DeepSpeed reduces the gradient as for a step; a hook of AdamW then removes it, and AdamW skips
        parameters without a gradient: weights, moments and step counts stay. Nothing is copied, except on the
        CPU with CPU offload, and gradients in bf16. For each parameter of the model a share takes 4 bytes
        without ZeRO, 4/processes with ZeRO.

        Raises:
            NonFiniteGradient: on all processes, if the gradient of any process is not finite.
        """
        self._refuse_borrowed("take_gradients")
        if not self._summed:
            raise RuntimeError("no gradient to take: no backward since the last step or take_gradients")
        taken: list[Tensor] = []
        self._taken = taken
        self._norm = float("inf")
        try:
            self.model.step()
        finally:
            self._taken, self._summed = None, False
            for parameter, buffer in self._lent:
                parameter.grad = buffer.zero_()
            self._lent.clear()
        if not math.isfinite(self._norm):
            raise NonFiniteGradient("a gradient taken for the gradient rule is not finite; lower method.lr")
        return taken

    def put_gradients(self, gradients: Sequence[Tensor]) -> None:
        """Set the gradient of the next step, in the shapes that `take_gradients` returns. A collective.

        It replaces the summed gradient, if any. The tensors are kept until `step`, not copied.
        """
        norm = float(self.gram([gradients])[0, 0].sqrt())
        if not math.isfinite(norm):
            raise NonFiniteGradient(f"the norm of the gradient combined by the rule is {norm}")
        self._put, self._put_norm = iter(gradients), norm

    def gram(self, gradients: Sequence[Sequence[Tensor]]) -> Tensor:
        """Return inner products of T taken gradients of the whole model, float64 [T, T] on every process."""
        return self._shares.gram(gradients)

    def gram_by_parameter(self, gradients: Sequence[Sequence[Tensor]]) -> dict[str, Tensor]:
        """Return `gram` of each trained parameter, by name; they sum to `gram`. A collective."""
        return self._shares.gram_by_parameter(gradients)

    def whole_gradients(self, gradients: Sequence[Sequence[Tensor]]) -> Iterator[tuple[str, list[Tensor]]]:
        """Yield for each trained parameter its name and the whole tensors, one for each taken gradient.

        The tensors are in fp32 on the device, to be read: views where this process has the whole parameter. A
        collective, which every process must exhaust; it holds one parameter at a time.
        """
        return self._shares.whole_gradients(gradients)

    def distribute(self, part: Callable[[ParameterSlice], Tensor]) -> list[Tensor]:
        """Return fp32 tensors in the shapes that `take_gradients` returns, padded with zeros.

        `part` returns this process's numbers [length] of a flattened parameter, from `at` on.
        """
        return self._shares.distribute(part)

    def masters(self) -> list[Tensor]:
        """Return this process's share of the master weights, in fp32, to be read.

        They have the shapes that `take_gradients` returns.
        """
        return self._stored.masters()

    def as_live(self, gradient: Sequence[Tensor]) -> list[Tensor]:
        """Return a taken gradient in the shapes of `live_weights`, in fp32, to be read. A collective.

        Views at ZeRO 0 and 3, and with one process; otherwise 4 bytes per parameter.
        """
        return self._shares.as_live(gradient)

    def live(self) -> Iterator[Tensor]:
        """Iterate over this process's trained parameters in compute precision, to be read.

        Full tensors up to ZeRO 2, this process's flat, padded partitions under ZeRO 3.
        """
        return (getattr(p, "ds_tensor", p) for _, p in self._shares.trained())

    def live_weights(self) -> list[Tensor]:
        """Return a copy of `live`."""
        return [tensor.detach().clone() for tensor in self.live()]

    @contextmanager
    def with_weights(self, values: Sequence[Tensor]) -> Iterator[None]:
        """Use these values, in the shapes of `live_weights` and cast to compute precision, in this block.

        Only pointers are exchanged: nothing is copied where the dtype fits, and afterwards the former weights
        are the same bit for bit. Master weights and optimizer state stay as they are. Not to be used between
        a forward and its backward.
        """
        slots = list(self.live())
        if [v.shape for v in values] != [s.shape for s in slots]:
            raise ValueError("the values do not have the shapes of live_weights of this engine")
        former = [slot.data for slot in slots]
        self._borrowed += 1
        self._set_live(slots, values)
        try:
            yield
        finally:
            self._set_live(slots, former)
            self._borrowed -= 1

    def use_weights(self, values: Sequence[Tensor]) -> None:
        """Use these values, as in `with_weights`, from now on. The training has ended: no step may follow."""
        self._borrowed += 1
        self._set_live(list(self.live()), values)

    def state(self) -> Iterator[tuple[str, dict[str, Tensor]]]:
        """Yield name and full tensors (`weight`, `exp_avg`, `exp_avg_sq`) of each trained parameter, in fp32.

        Moments in 8 bits have scales as well (`exp_avg_scale` …), from which `restore` finds the same codes.
        The tensors are on the CPU and do not depend on the number of processes or the ZeRO stage. A
        collective, which every process must exhaust; only the main process gets tensors.
        """
        return self._stored.read()

    def restore(self, weights: Mapping[str, Tensor], moments: Mapping[str, Tensor], steps: int) -> None:
        """Restore the `state` after `steps` optimizer steps; moments are keyed `exp_avg/<name>`.

        The engine must have been made with a model that already has these weights.
        """
        # A step without effect makes the optimizer allocate its state, in the same way at every ZeRO stage.
        ids = torch.zeros((1, 2), dtype=torch.long, device=self.world.device)
        with laid_out(all_prompt(ids)):
            logits = self.model(input_ids=ids, use_cache=False).logits
        self.backward(logits.float().sum() * 0.0)
        self.step(lr=0.0)
        self._stored.write(weights, moments, steps)

    def weights(self, wanted: Callable[[str], bool] = lambda _: True) -> Iterator[tuple[str, Tensor]]:
        """Yield names and whole tensors of the state dict in compute precision, to be read at once.

        Only those whose name is `wanted`, which must answer the same on all processes. A collective, which
        every process must exhaust; only the main process gets tensors, at ZeRO 3 whole ones one at a time.
        """
        if self.zero < 3:
            if self.world.main:
                yield from ((n, t.detach()) for n, t in self.module.state_dict().items() if wanted(n))
            return
        for name, parameter in self.module.named_parameters(remove_duplicate=False):
            if wanted(name):
                yield from ((name, whole) for whole in self._shares.on_main(parameter))
        if self.world.main:
            yield from ((name, buffer) for name, buffer in self._saved_buffers() if wanted(name))

    def whole(self, shares: Sequence[Tensor]) -> Iterator[tuple[str, Tensor]]:
        """Yield name and whole tensor, on the CPU, of shares in the form of `live_weights`. A collective."""
        return self._shares.whole(shares)

    def shares(self, whole: Mapping[str, Tensor]) -> Iterator[Tensor]:
        """Yield this process's shares of whole tensors by name, in the order of `live_weights`."""
        return self._shares.of(whole)

    def whole_parameters(self, module: nn.Module) -> AbstractContextManager[None]:
        """Return a context in which a module's parameters are whole, to be read."""
        return engine_slices.whole_parameters(module)

    def close(self) -> None:
        """Free the optimizer's state and the gradients, so that another engine can be made."""
        self._kernels.close()
        engine_slices.release(self.model)
        self._accelerator.free_memory()
        _OPEN.discard(self)
        nn.functional.linear = self._linear  # ZeRO 3 replaced it for all models of the process
        AcceleratorState._reset_state()  # until then Accelerate accepts only one DeepSpeed configuration

    def _saved_buffers(self) -> Iterator[tuple[str, Tensor]]:
        saved = self.module.state_dict().keys()
        return ((n, b) for n, b in self.module.named_buffers() if n in saved)

    def _set_live(self, slots: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        if self.zero == 3:
            self.model.optimizer.empty_partition_cache()  # gathered parameters have the former values
        for slot, value in zip(slots, values, strict=True):
            # Not in place: ZeRO-3's partitions may be views of the fp32 master weights.
            slot.data = value.detach().to(slot.device, slot.dtype)

    def _refuse_borrowed(self, what: str) -> None:
        if self._borrowed:
            raise RuntimeError(f"{what} inside with_weights; leave the with block first")

    def _before_update(self, optimizer: torch.optim.Optimizer, *_: Any) -> None:
        """Take, replace or clip the reduced fp32 gradients before a step of AdamW.

        ZeRO calls this once for each parameter group, with this process's flat partition of the group.
        """
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._norm = self._global_norm(parameters)
        if self._taken is not None:
            for parameter in parameters:
                self._take(parameter)
            return
        if self.zero == 0 and not math.isfinite(self._norm):  # as DeepSpeed does at the other stages
            for parameter in parameters:
                parameter.grad = None
            return
        factor = min(1.0, self._clip / (self._norm + 1e-6)) if self._clip > 0 else 1.0
        for parameter in parameters:
            if self._put is not None:
                parameter.grad.copy_(next(self._put))
            parameter.grad.mul_(factor)

    def _pretend_backward(self) -> None:
        """Rebuild ZeRO's lists of gradients with any content: ZeRO cannot step without them."""
        if self.zero in (1, 2):
            self.model.optimizer.setup_buckets()
        if self.zero in (2, 3):  # at lower stages the step itself does it
            self.model.allreduce_gradients()

    def _take(self, parameter: Tensor) -> None:
        assert self._taken is not None
        assert parameter.grad is not None
        if self._offload:  # DeepSpeed needs its buffer back
            self._lent.append((parameter, parameter.grad))
            self._taken.append(parameter.grad.clone())
        elif self._shares.is_reused(parameter.grad):
            self._taken.append(parameter.grad.clone())
        else:
            self._taken.append(parameter.grad.float())
        parameter.grad = None

    def _global_norm(self, parameters: Sequence[Tensor]) -> float:
        if self._put is not None:
            return self._put_norm
        if self.zero == 0:
            gradients = [p.grad for p in parameters if p.grad is not None]
            each = [torch.linalg.vector_norm(gradient, dtype=torch.float32) for gradient in gradients]
            return float(torch.linalg.vector_norm(torch.stack(each)))
        norm = float(self.model.optimizer._global_grad_norm)
        return norm if norm >= 0 else float("inf")  # DeepSpeed returns -1 for a norm that is not finite


def close_all() -> None:
    """Close the engines that an ended run has left open, so that another run can begin in this process."""
    for engine in list(_OPEN):
        engine.close()
