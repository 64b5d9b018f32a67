"""The loop: batch, one forward, terms, one exact average, backward, step, log, checkpoint.

It knows terms, weights and a rule, and no method by name.
"""

from __future__ import annotations

import logging
import math
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from unlearn.config import CheckpointConfig, HardwareConfig, MethodConfig
from unlearn.data.batching import Schedule
from unlearn.errors import UserError
from unlearn.rules import Rule
from unlearn.run_dir import RunDir
from unlearn.signals import Stopped, on_stop
from unlearn.terms import Term
from unlearn.training.auto_lr import AutoLR
from unlearn.training.engine import Engine
from unlearn.training.learning_rate import schedule_factor, total_steps, warmup_steps
from unlearn.training.mean_teacher import MeanTeacher
from unlearn.training.microbatch import Frozen, Group, Plan, own_view
from unlearn.training.step import Steps

log = logging.getLogger(__name__)

# Where writing a checkpoint takes longer than so many seconds, the next one by time is after ten times as
# long at the earliest: a large model would otherwise spend much of its time on them.
_LONG, _SPACED = 5.0, 10


class NonFiniteLoss(UserError):
    """The loss is NaN or infinite."""


@dataclass(frozen=True)
class Moment:
    """When a probe looks: after `step` updates, at a peak learning `rate`; and how terms make an update."""

    step: int
    rate: float
    rule: Rule
    frozen: Frozen


class Asked(NamedTuple):
    """What the processes agreed on in a step: to stop after it, and to save since the time has come."""

    stop: bool
    save: bool


class Logger(Protocol):
    """What the trainer tells of its steps; the files are written by the trainer itself."""

    def log(self, row: Mapping[str, float], step: int) -> None: ...


class Watcher(Protocol):
    """A probe: it looks at chosen steps and changes nothing."""

    def due(self, step: int, total: int) -> bool: ...

    def look(self, moment: Moment) -> dict[str, float]: ...


@dataclass
class Trainer:
    """One training, from step 0 or from a checkpoint to its last step.

    `started`: when this process began the run, in seconds of `time.monotonic`; checkpoints by time count from
    there, so that a run that is killed again and again and takes long to load goes on nevertheless.
    """

    engine: Engine
    terms: Sequence[Term]
    rule: Rule
    groups: Mapping[str, Group]
    method: MethodConfig
    hardware: HardwareConfig
    checkpoint: CheckpointConfig
    seed: int
    learning_rate: float
    rundir: RunDir
    tracker: Logger
    frozen: Frozen = field(default_factory=Frozen)
    pad_id: int = 0
    evaluate: Callable[[int], Mapping[str, float]] | None = None
    evaluate_every: int | None = None
    progress: bool = True
    probe: Watcher | None = None
    keep_model: Callable[[int], None] | None = None
    step: int = 0
    tokens: int = 0
    started: float = field(default_factory=time.monotonic)
    _asked_to_stop: bool = field(default=False, init=False)

    def __post_init__(self) -> None:
        sizes = {group: len(data.ids) for group, data in self.groups.items()}
        self.schedule = Schedule(sizes, self.method.sets[0], self.method.batch, self.seed)
        self.total = total_steps(self.method, self.schedule.steps_per_epoch)
        self.warmup = warmup_steps(self.method, self.schedule.steps_per_epoch)
        self.teacher = MeanTeacher(self.engine, self.method.teacher_rate) if self._taught else None
        if self.teacher is not None:
            self.frozen = replace(self.frozen, teacher=self.teacher.weights)
        self.steps = Steps(
            self.engine, self.terms, self.groups, self.hardware, self.frozen, self.seed, self.pad_id
        )
        self._save_at = self._next_save(self.started, 0.0)
        self.auto = AutoLR(self.learning_rate, **self.method.auto_lr.model_dump(exclude={"loss"}))

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFiniteLoss: the loss of a step is not finite; the model and the checkpoints are of before it.
            Stopped: SIGTERM, SIGINT or SIGUSR1 came; a checkpoint of the last whole step is written.
        """
        every = self.checkpoint.every_steps or max(1, self.total // 10)
        self.engine.model.train()
        shown = self.progress and self.engine.world.main
        bar = tqdm(
            total=self.total, initial=self.step, desc="train", unit="step", disable=None if shown else True
        )
        with bar, on_stop(self._ask_to_stop):
            self._measure()  # after a checkpoint: what may have been cut off
            while self.step < self.total:
                row, asked = self._one_step()
                stop = asked.stop
                self._tell(row)
                bar.set_postfix(
                    loss=f"{row['loss']:.4g}", lr=f"{row['lr']:.2g}", tok_s=f"{row['tokens_per_s']:.0f}"
                )
                bar.update()
                done = self.step == self.total
                if stop or (not done and (asked.save or self.step % every == 0)):
                    self.save()
                if not stop:
                    self._measure()
                    stop = done and self._stop_asked()
                    if stop:
                        self.save()
                if stop:
                    raise Stopped(
                        f"stopped by a signal after step {self.step} of {self.total}; it can be resumed"
                    )

    def save(self) -> None:
        """A checkpoint of the current step."""
        begun = time.monotonic()
        facts = {
            "tokens": self.tokens,
            "total": self.total,
            "rule": self.rule.state(),
            "auto_lr": self.auto.state(),
        }
        state = self.engine.state()
        if self.teacher is not None:
            state = self.teacher.beside(state)
        self.rundir.save_checkpoint(
            self.step, state, facts, keep=self.checkpoint.keep, write=self.engine.world.main
        )
        self.engine.world.barrier()
        ended = time.monotonic()
        self._save_at = self._next_save(ended, ended - begun)

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint whose weights the engine's model was built with."""
        weights = {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")}
        self.engine.put_back(weights, tensors, facts["step"])
        self.step, self.tokens = facts["step"], facts["tokens"]
        self.rule.load(facts["rule"])
        self.auto.load(facts["auto_lr"])
        if self.teacher is not None:
            self.teacher.put_back(tensors)
        if self.engine.world.main:
            self.rundir.cut_history(self.step)

    def _stop_asked(self) -> bool:
        """Whether a signal came to any process. A collective."""
        asked = torch.tensor(float(self._asked_to_stop), device=self.engine.world.device)
        return bool(self.engine.world.sum(asked))

    def _next_save(self, last: float, took: float) -> float:
        """When the time for a checkpoint comes, after one that ended at `last` and took so many seconds."""
        if self.checkpoint.every_minutes is None:
            return math.inf
        return last + max(60 * self.checkpoint.every_minutes, _SPACED * took if took > _LONG else 0)

    def _measure(self) -> None:
        """What is due between this step and the next, and after the last."""
        done = self.step == self.total
        if self.evaluate and _due(self.step, self.evaluate_every) and not done:
            self._tell({"step": self.step, **self.evaluate(self.step)})
            self.engine.model.train()
        if self.keep_model and _due(self.step, self.checkpoint.models_every):
            self.keep_model(self.step)
        self._look()

    def _look(self) -> None:
        if self.probe is None or not self.probe.due(self.step, self.total):
            return
        seen = self.probe.look(Moment(self.step, self.auto.lr, self.rule, self.frozen))
        if seen:
            self._tell({"step": self.step, "epoch": self.step / self.schedule.steps_per_epoch, **seen})

    # -- one step --------------------------------------------------------------------------------------

    def _one_step(self) -> tuple[dict[str, float], Asked]:
        started = time.perf_counter()
        plan = self._plan(self.step)
        factors = self.rule.factors()
        weights = [term.weight * factors.get(term.name, 1.0) for term in self.terms]
        means = self.steps.means(plan, self.terms)
        sums = torch.zeros(len(self.terms) + 2, dtype=torch.float64, device=self.engine.world.device)
        gradients = []
        if self.rule.separate:
            for place, term in enumerate(self.terms):
                self._backward(plan, {place: (term, 1.0)}, means, sums)
                self._refuse_non_finite(float(self.engine.world.sum(sums[place].clone())), plan)
                gradients.append(self.engine.take_gradients())
        else:
            both = zip(self.terms, weights, strict=True)
            self._backward(plan, dict(enumerate(both)), means, sums)
        # The main process's clock decides for all.
        sums[-2] = float(self.engine.world.main and time.monotonic() >= self._save_at)
        sums[-1] = float(self._asked_to_stop)
        *losses, save, stop = self.engine.world.sum(sums).tolist()
        total = sum(weight * loss for weight, loss in zip(weights, losses, strict=True))
        self._refuse_non_finite(total, plan)
        row = {"step": self.step + 1, "epoch": (self.step + 1) / self.schedule.steps_per_epoch, "loss": total}
        if gradients:
            row |= self._combine(gradients, weights)
        row |= {f"loss/{term.name}": loss for term, loss in zip(self.terms, losses, strict=True)}
        row |= self._update()
        self.step += 1
        self.rule.observe(dict(zip((t.name for t in self.terms), losses, strict=True)), row["epoch"])
        row |= self.rule.log()
        step_tokens = self.steps.tokens(plan)
        self.tokens += step_tokens
        row |= {"tokens": self.tokens, "memory_gib": memory_gib(self.engine.world.device)}
        row["tokens_per_s"] = step_tokens / (time.perf_counter() - started)
        return row, Asked(bool(stop), bool(save))

    def _plan(self, step: int) -> Plan:
        return self.steps.plan(step, self.schedule.rows(step))

    def _backward(
        self, plan: Plan, terms: Mapping[int, tuple[Term, float]], means: Mapping[str, Tensor], sums: Tensor
    ) -> None:
        """Add the gradient of the terms' weighted sum to the step's, and their values to `sums`."""
        chosen = [term for term, _ in terms.values()]
        for units in self.steps.deal(plan, chosen):
            # Without units, this process still takes part in the collectives.
            shares = self.steps.values(plan, units or self.steps.dummy(plan, chosen), chosen, means)
            loss = sum(weight * shares[term.name] for term, weight in terms.values() if term.name in shares)
            assert isinstance(loss, Tensor)
            self.engine.backward(loss if units else loss * 0.0)
            for place, (term, _) in terms.items():
                if units and term.name in shares:
                    sums[place] += shares[term.name].detach()

    def _combine(self, gradients: list[list[Tensor]], weights: Sequence[float]) -> dict[str, float]:
        """Make the rule's combination of the terms' gradients the step's; what to log of them."""
        gram = self.engine.gram(gradients)
        factors = self.rule.combine(gram).tolist()
        combined = gradients[0]
        for place, (gradient, factor) in enumerate(zip(gradients, factors, strict=True)):
            for into, each in zip(combined, gradient, strict=True):
                if place == 0:
                    into.mul_(weights[0] * factor)
                else:
                    into.add_(each, alpha=weights[place] * factor)
        self.engine.put_gradients(combined)
        norms = gram.diagonal().clamp(min=0).sqrt().tolist()
        return {f"grad_norm/{t.name}": norm for t, norm in zip(self.terms, norms, strict=True)}

    def _update(self) -> dict[str, float]:
        """The optimizer's step, with a probe along it where the schedule asks for one."""
        schedule, after = self.method.schedule, self.step - self.warmup
        # Without probes the peak stays what it was set to.
        rate = self.auto.lr * schedule_factor(self.step, self.total, self.warmup, schedule)
        probed = schedule == "auto" and after >= 0 and self.auto.due(after)
        before = self.engine.live_weights() if probed else []
        norm = self.engine.step(rate)
        if self.teacher is not None:
            self.teacher.follow()
        told = {"lr": rate, "grad_norm": norm}
        if probed:
            self.auto.update(self._probe(before, self.engine.live_weights()))
            told |= self.auto.log()
        return told

    def _probe(self, before: Sequence[Tensor], after: Sequence[Tensor]) -> list[float]:
        """Losses of the next step's data at multiples of the update just made; the model is left as it is."""
        plan = self._plan((self.step + 1) % self.total)
        kind = self.method.auto_lr.loss
        chosen = [t for t in self.terms if kind == "combined" or own_view(t).group == kind]
        means = self.steps.means(plan, chosen)
        both = list(zip(before, after, strict=True))
        return [
            self._loss_at(plan, chosen, means, [torch.lerp(b, a, -m) for b, a in both])
            for m in self.auto.multipliers
        ]

    def _loss_at(
        self, plan: Plan, terms: Sequence[Term], means: Mapping[str, Tensor], weights: Sequence[Tensor]
    ) -> float:
        total = torch.zeros((), dtype=torch.float64, device=self.engine.world.device)
        factors = self.rule.factors()
        with torch.no_grad(), self.engine.with_weights(weights):
            for units in self.steps.deal(plan, terms):
                shares = self.steps.values(plan, units or self.steps.dummy(plan, terms), terms, means)
                if units:
                    total += sum(
                        t.weight * factors.get(t.name, 1.0) * shares[t.name].double()
                        for t in terms
                        if t.name in shares
                    )
        return float(self.engine.world.sum(total))

    def _refuse_non_finite(self, loss: float, plan: Plan) -> None:
        if math.isfinite(loss):
            return
        ids = ", ".join(str(self.groups[unit.group].ids[unit.row]) for unit in plan.units[:8])
        more = f" and {len(plan.units) - 8} more" if len(plan.units) > 8 else ""
        last = self.rundir.newest_checkpoint()
        raise NonFiniteLoss(
            f"the loss is {loss} at step {self.step + 1} of {self.total}, before its update was made "
            f"(batch: {ids}{more}); last good checkpoint: {last or 'none yet'}. "
            "Lower method.lr or set method.clip"
        )

    # -- around it -------------------------------------------------------------------------------------

    @property
    def _taught(self) -> bool:
        return any("teacher_logits" in term.needs for term in self.terms)

    def _tell(self, row: Mapping[str, float]) -> None:
        if self.engine.world.main:
            self.rundir.append_history(row)
            self.tracker.log(row, int(row["step"]))

    def _ask_to_stop(self, number: int) -> None:
        log.warning("%s: stopping after this step", signal.Signals(number).name)
        self._asked_to_stop = True


def _due(step: int, every: int | None) -> bool:
    return every is not None and step > 0 and step % every == 0


def memory_gib(device: torch.device) -> float:
    """Most memory this process has held: of the GPU if it uses one, else resident."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30
