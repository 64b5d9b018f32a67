"""The training loop: batch, forward, terms, exact averages, backward, update, history, checkpoint.

It depends on terms, weights and a rule, not on the name of a method.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import psutil
import torch
from torch import Tensor
from tqdm import tqdm

from unlearn.config import HardwareConfig, MethodConfig
from unlearn.data.batching import Schedule
from unlearn.errors import UserError, listed
from unlearn.rules import make_rule
from unlearn.signals import Handlers, StartAgain, Stopped, handling, on_stop, stop_handlers
from unlearn.terms import Term
from unlearn.training.auto_lr import AutoLR
from unlearn.training.combination import KeptVector, combine_gradients
from unlearn.training.engine import Engine, NonFiniteGradient
from unlearn.training.interruption import Checkpoints, StopRequest
from unlearn.training.learning_rate import schedule_factor, total_steps, warmup_steps
from unlearn.training.mean_teacher import MeanTeacher
from unlearn.training.observers import History, Observers, ProbeContext
from unlearn.training.smoothness import Smoothness, WeightAverage
from unlearn.training.step import Steps
from unlearn.training.step_data import Plan, TrainingData, own_view

log = logging.getLogger(__name__)


_MOST_SKIPPED = 10  # steps in a row


class NonFiniteLoss(UserError):
    """The loss is NaN or infinite."""


@dataclass(frozen=True)
class TrainSettings:
    """How to train; `learning_rate` is the peak rate of the schedule."""

    method: MethodConfig
    hardware: HardwareConfig
    learning_rate: float
    progress: bool = True


class StepResult(NamedTuple):
    """The logged row of a step, and the processes' common decisions to stop after it and to save."""

    row: dict[str, float]
    stop: bool
    save: bool


@dataclass
class Trainer:
    """One training, from step 0 or from a checkpoint to its last step.

    Without `checkpoints` nothing is saved. `steps_made` counts optimizer steps, `tokens` their tokens,
    `skipped` the steps without an update, since their gradient was not finite.
    """

    engine: Engine
    terms: Sequence[Term]
    data: TrainingData
    settings: TrainSettings
    history: History
    checkpoints: Checkpoints | None = None
    observers: Observers = field(default_factory=Observers)
    steps_made: int = 0
    tokens: int = 0
    skipped: int = 0

    def __post_init__(self) -> None:
        method = self.settings.method
        sizes = {name: len(group.ids) for name, group in self.data.groups.items()}
        self.rule = make_rule(**method.rule.model_dump())
        self.kept = KeptVector(self.engine, "kept")
        self.schedule = Schedule(sizes, method.sets[0], method.batch, self.data.seed)
        self.total = total_steps(method, self.schedule.steps_per_epoch)
        self.rule.begin(self.total)
        self.warmup = warmup_steps(method, self.schedule.steps_per_epoch)
        self.auto = AutoLR(self.settings.learning_rate, **method.auto_lr.model_dump(exclude={"loss"}))
        has_teacher = any(each.source == "teacher" for term in self.terms for each in term.statistics)
        self.teacher = MeanTeacher(self.engine, method.teacher_rate) if has_teacher else None
        if self.teacher is not None:
            frozen = replace(self.data.frozen, teacher=self.teacher.weights)
            self.data = replace(self.data, frozen=frozen)
        self.steps = Steps(self.engine, self.terms, self.data, self.settings.hardware)
        smooth, name = method.smooth, method.smooth.name
        self.average = WeightAverage(self.engine, smooth, self.total) if name == "average" else None
        self.smoothness = None
        if name not in ("none", "average"):
            self.smoothness = Smoothness(self.steps, smooth, self.rule.separate, self._refuse_non_finite)
        self._skipped_in_a_row = 0
        self._saved_step: int | None = None
        self._stop_request = StopRequest()
        self._outside: Handlers = {}

    def run(self) -> None:
        """Train to the end.

        Raises:
            NonFiniteLoss: the loss of a step is not finite (model and checkpoints are from before the step),
                or no gradient was for some steps.
            Stopped: on SIGTERM, SIGINT, SIGUSR1 or SIGUSR2, after a checkpoint of the last whole step.
        """
        self.engine.model.train()
        shown = self.settings.progress and self.engine.world.main
        bar = tqdm(
            total=self.total, initial=self.steps_made, desc="train", unit="step",
            disable=None if shown else True,
        )  # fmt: skip
        resumed, self._outside = self.steps_made > 0, stop_handlers()
        with bar, on_stop(self._stop_request):
            self.observe()  # repeats the observers of the checkpoint's step, which may have been interrupted
            while self.steps_made < self.total:
                row, stop, save = self.step()
                bar.set_postfix(
                    loss=f"{row['loss']:.4g}", lr=f"{row['lr']:.2g}", tok_s=f"{row['tokens_per_s']:.0f}"
                )
                bar.update()
                done = self.steps_made == self.total
                if not stop and (done or self._observed(self.steps_made)):
                    stop = self._stop_request.received_by_any(self.engine.world)
                if stop or (not done and (save or self._save_due())):
                    self.save()
                elif done and resumed:  # a run that was cut off may be so again, while its model is saved
                    self._save_if_room()
                if not stop:
                    self.observe()
                    stop = done and self._stop_request.received_by_any(self.engine.world)
                    if stop:
                        self.save()
                if stop:
                    raise self._stopped()
        if self.average is not None:
            self.average.load()

    def _save_if_room(self) -> None:
        try:
            self.save()
        except UserError as error:
            log.warning("%s", error)

    def _stopped(self) -> Stopped:
        return Stopped(f"stopped by a signal after step {self.steps_made} of {self.total}; it can be resumed")

    def step(self) -> StepResult:
        """Make one optimizer step and add its row to the history. A collective.

        Raises:
            NonFiniteLoss: the loss is not finite; raised before the update.
        """
        started = time.perf_counter()
        plan, weights = self.plan(self.steps_made), self.weights()
        finite = True
        with self._saving():
            try:
                losses, gradients = self.losses_and_gradients(plan)
            except NonFiniteGradient:
                finite, losses, gradients = False, self._losses(plan), []
        # The main process's clock decides for all processes.
        save = False
        if self.checkpoints is not None and self.engine.world.main:
            # A signal ends several processes at once while they measure.
            cheap = self.engine.world.size > 1 and self._observed(self.steps_made + 1)
            save = self.checkpoints.due_by_time(cheap=cheap)
        flags = losses.new_tensor([float(save), float(self._stop_request.received)])
        *values, save_flag, stop = self.engine.world.sum(torch.cat([losses, flags])).tolist()
        by_term = dict(zip(weights, values, strict=True))
        total = sum(weight * by_term[name] for name, weight in weights.items())
        self._refuse_non_finite(total, plan)
        epoch = (self.steps_made + 1) / self.schedule.steps_per_epoch
        row: dict[str, float] = {"step": self.steps_made + 1, "epoch": epoch, "loss": total}
        if not self.rule.separate and gradients:
            self.engine.put_gradients(gradients[0])
        elif gradients:
            sets = [own_view(term).group for term in self.terms]
            try:
                norms = combine_gradients(
                    self.engine, self.rule, gradients, list(weights.values()), sets, self.kept
                )
                row |= {f"grad_norm/{name}": norm for name, norm in zip(weights, norms, strict=True)}
            except NonFiniteGradient:
                finite = False
        row |= {f"loss/{name}": loss for name, loss in by_term.items()}
        row |= self.update(finite=finite)
        self.steps_made += 1
        self.rule.observe(by_term, epoch)
        row |= self.rule.log()
        if self.smoothness is not None:
            row |= self.smoothness.log()
        if self.average is not None:
            row |= self.average.follow(self.steps_made)
        step_tokens = self.steps.tokens(plan)
        self.tokens += step_tokens
        row |= {"tokens": self.tokens, "memory_gib": memory_gib(self.engine.world.device)}
        row["tokens_per_s"] = step_tokens / (time.perf_counter() - started)
        self.history.add(row)
        return StepResult(row, bool(stop), bool(save_flag))

    def plan(self, step: int) -> Plan:
        """Return the plan of a step, counted from 0."""
        return self.steps.plan(step, self.schedule.rows(step))

    def weights(self) -> dict[str, float]:
        """Return each term's weight in this step, multiplied by the rule's factor."""
        factors = self.rule.factors()
        return {term.name: term.weight * factors.get(term.name, 1.0) for term in self.terms}

    def losses_and_gradients(self, plan: Plan) -> tuple[Tensor, list[list[Tensor]]]:
        """Make a step's forward and backward passes. A collective.

        Returns this process's share of each term's loss, without its weight, float64 [T]; and for a rule of
        separate gradients the engine's share of each term's gradient, without its weight. For other rules the
        list is empty and the gradient of the weighted sum is in the engine; or it has this alone, smoothed.
        """
        if self.smoothness is not None:
            return self.smoothness.losses_and_gradients(plan, self.weights())
        means = self.steps.means(plan, self.terms)
        if not self.rule.separate:
            return self.steps.backward(plan, self.weights(), means), []
        losses, gradients = [], []
        for term in self.terms:
            losses.append(self.steps.backward(plan, {term.name: 1.0}, means))
            self._refuse_non_finite(float(self.engine.world.sum(losses[-1].clone())), plan)
            gradients.append(self.engine.take_gradients())
        return torch.cat(losses), gradients

    def _losses(self, plan: Plan) -> Tensor:
        """Return this process's share of each term's loss, float64 [T], without gradients. A collective."""
        means, main = self.steps.means(plan, self.terms), self.engine.world.main
        losses = [self.steps.loss(plan, {term.name: 1.0}, means) for term in self.terms]
        return torch.tensor(losses, dtype=torch.float64, device=self.engine.world.device) * float(main)

    def update(self, *, finite: bool = True) -> dict[str, float]:
        """Make the optimizer's step, with a probe along it if `schedule=auto` has one due; return its row.

        Without a `finite` gradient to make it with, count it as skipped.
        """
        schedule, warm = self.settings.method.schedule, self.steps_made - self.warmup
        # Without probes the peak rate is constant.
        rate = self.auto.lr * schedule_factor(self.steps_made, self.total, self.warmup, schedule)
        if not finite:
            self._count_skipped(math.inf)
            return {"lr": rate, "grad_norm": math.inf}
        probed = schedule == "auto" and warm >= 0 and self.auto.due(warm)
        before = [each.clone() for each in self.engine.masters()] if probed else []
        row = {"lr": rate, "grad_norm": self.engine.step(rate)}
        self._count_skipped(row["grad_norm"])
        if self.teacher is not None:
            self.teacher.follow()
        if probed:
            plan, multipliers = self.plan((self.steps_made + 1) % self.total), self.auto.multipliers
            after, weights = self.engine.masters(), self._probed_weights()
            self.auto.update(self.steps.losses_along(plan, weights, before, after, multipliers))
            row |= self.auto.log()
        return row

    def _count_skipped(self, norm: float) -> None:
        """Count a step whose gradient was not finite: the engine has made no update.

        Raises:
            NonFiniteLoss: so were those of the steps before; on all processes.
        """
        self._skipped_in_a_row = 0 if math.isfinite(norm) else self._skipped_in_a_row + 1
        if not self._skipped_in_a_row:
            return
        self.skipped += 1
        if self.engine.world.main:
            log.warning("step %d: the gradient is not finite, no update is made", self.steps_made + 1)
        if self._skipped_in_a_row == _MOST_SKIPPED:
            raise NonFiniteLoss(
                f"no gradient was finite in the {_MOST_SKIPPED} steps up to {self.steps_made + 1} of "
                f"{self.total}: nothing is learned. Lower method.lr, or look at the model's weights"
            )

    def _evaluated(self, step: int) -> bool:
        if step == self.total:
            return self.observers.selection is not None
        return _due(step, self.observers.evaluate_every)

    def _observed(self, step: int) -> bool:
        """Return whether an evaluation or a probe is due after a step."""
        probe = self.observers.probe
        return self._evaluated(step) or (probe is not None and probe.due(step, self.total))

    def observe(self) -> None:
        """Call the observers that are due between this step and the next, and after the last."""
        step, done, watching = self.steps_made, self.steps_made == self.total, self.observers
        if watching.evaluate and self._evaluated(step):
            with self._saving(), self._stopping_at_once():
                measured = watching.evaluate(step)
            self.history.add({"step": step, **measured})
            if watching.selection is not None:
                watching.selection.add(step, measured, last=done)
            self.engine.model.train()
        if watching.keep_model and _due(step, watching.keep_every):
            watching.keep_model(step)
        if watching.probe is not None and watching.probe.due(step, self.total):
            with self._saving(), self._stopping_at_once():
                measured = watching.probe.measure(self.probe_context())
            if measured:
                epoch = step / self.schedule.steps_per_epoch
                self.history.add({"step": step, "epoch": epoch, **measured})

    def probe_context(self) -> ProbeContext:
        """Return the state of the training that a probe needs at this step."""
        return ProbeContext(self.steps_made, self.auto.lr, self.rule, self.data.frozen, self.kept.shares)

    def save(self) -> None:
        """Write a checkpoint of the current step, unless it has one. A collective."""
        if self.checkpoints is None or self._saved_step == self.steps_made:
            return
        facts = {
            "tokens": self.tokens,
            "skipped": self.skipped,
            "total": self.total,
            "rule": self.rule.state(),
            "auto_lr": self.auto.state(),
        }
        state = self.kept.extend_state(self.engine.state())
        if self.teacher is not None:
            state = self.teacher.extend_state(state)
        if self.average is not None:
            state = self.average.mean.extend_state(state)
        self.checkpoints.save(self.steps_made, state, facts, self.engine.world)
        self._saved_step = self.steps_made

    def restore(self, facts: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
        """Continue from a checkpoint; the engine's model must have been built with its weights."""
        weights = {n.removeprefix("weight/"): t for n, t in tensors.items() if n.startswith("weight/")}
        self.steps_made, self.tokens = facts["step"], facts["tokens"]
        self.skipped = facts.get("skipped", 0)
        self.engine.restore(weights, tensors, self.steps_made - self.skipped)
        self._saved_step = self.steps_made
        self.rule.load(facts["rule"])
        self.auto.load(facts["auto_lr"])
        self.kept.restore(tensors)
        if self.average is not None:
            self.average.mean.restore(tensors)
        if self.teacher is not None:
            self.teacher.restore(tensors)
        self.history.cut(self.steps_made)

    @contextmanager
    def _saving(self) -> Iterator[None]:
        """Save before the run begins again, if that needs no other process; between two updates only."""
        try:
            yield
        except StartAgain:
            if self.engine.world.size == 1 and self.steps_made:
                self._save_if_room()  # else it begins again from the checkpoint before
            raise

    @contextmanager
    def _stopping_at_once(self) -> Iterator[None]:
        """Let a signal end a measurement, which may take long, and the run: one process saves before.

        Several are ended by it where they are, since they may wait for each other.
        """
        if self.checkpoints is None:
            yield
            return
        try:
            with handling(self._outside):
                yield
        except (Stopped, KeyboardInterrupt):
            if self.engine.world.size == 1 and self.steps_made:
                self.save()
                raise self._stopped() from None
            raise

    def _save_due(self) -> bool:
        return self.checkpoints is not None and self.checkpoints.due(self.steps_made, self.total)

    def _probed_weights(self) -> dict[str, float]:
        """Return the weights of the terms whose loss is probed."""
        kind, weights = self.settings.method.auto_lr.loss, self.weights()
        chosen = [t for t in self.terms if kind == "combined" or own_view(t).group == kind]
        return {term.name: weights[term.name] for term in chosen}

    def _refuse_non_finite(self, loss: float, plan: Plan) -> None:
        if math.isfinite(loss):
            return
        ids = listed((str(self.data.groups[unit.group].ids[unit.row]) for unit in plan.units), 8)
        newest = self.checkpoints.newest() if self.checkpoints else None
        raise NonFiniteLoss(
            f"the loss is {loss} at step {self.steps_made + 1} of {self.total}, before its update was made "
            f"(batch: {ids}); last good checkpoint: {newest or 'none yet'}. "
            "Lower method.lr or set method.clip"
        )


def _due(step: int, every: int | None) -> bool:
    return every is not None and step > 0 and step % every == 0


def memory_gib(device: torch.device) -> float:
    """Return this process's memory in GiB: the peak on the GPU if it uses one, else the resident memory."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device)) / 2**30
    return float(psutil.Process().memory_info().rss) / 2**30
