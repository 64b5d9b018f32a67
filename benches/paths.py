"""Three implementations of one training step: the project's, a plain one, and a lower bound.

A path makes step `number` on the examples of that step and returns numbers to compare.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, logsigmoid
from torch.nn.utils import clip_grad_norm_

from benches.cases import RATE, Case, Silent
from unlearn.data.batching import Schedule, collate, deal
from unlearn.data.tokenization import TokenSequence
from unlearn.distributed import start_world
from unlearn.rules import clip_norm
from unlearn.run_dir import RunDir
from unlearn.terms import bind
from unlearn.training.engine import Engine
from unlearn.training.observers import History
from unlearn.training.optimizers import decay_groups
from unlearn.training.step_data import TrainingData
from unlearn.training.trainer import Trainer, TrainSettings


class Outcome(NamedTuple):
    """Loss of a step before its update, and the norm of its gradient before clipping."""

    loss: float
    grad_norm: float


class Ours:
    """The trainer's own step through DeepSpeed, with its line of history."""

    def __init__(self, case: Case, folder: Path) -> None:
        method = case.method
        engine = Engine(
            case.load(), start_world("cpu"), case.hardware, clip=clip_norm(method),
            weight_decay=method.weight_decay, betas=method.betas,
        )  # fmt: skip
        engine.model.train()
        self._trainer = Trainer(
            engine,
            bind(method),
            TrainingData(case.groups),
            TrainSettings(method, case.hardware, RATE, progress=False),
            History(RunDir(folder), Silent()),
        )

    def step(self, number: int) -> Outcome:
        self._trainer.steps_made = number
        row = self._trainer.step().row
        return Outcome(row["loss"], row["grad_norm"])

    def close(self) -> None:
        self._trainer.engine.close()


class Plain:
    """Plain Hugging Face code: right padding with a mask, logits of all positions, the reference in memory.

    `rows` sequences of each group per forward. Sums over micro-batches are divided by the counts of the
    whole batch, as in `Ours`, whereas common code averages averages.
    """

    def __init__(self, case: Case, rows: int) -> None:
        self._case, self._rows = case, rows
        self._model = case.load().train()
        self._needs_reference = case.method.forget is not None and case.method.forget["objective"] == "npo"
        self._reference = case.load().eval().requires_grad_(False) if self._needs_reference else None
        method = case.method
        self._optimizer = torch.optim.AdamW(
            decay_groups(self._model, method.weight_decay), lr=RATE, betas=method.betas, fused=True
        )

    def step(self, number: int) -> Outcome:
        forget, retain = examples(self._case, number).values()
        answer_tokens = {"forget": _answer_tokens(forget), "retain": _answer_tokens(retain)}
        total = 0.0
        for start in range(0, len(forget), self._rows):
            part = slice(start, start + self._rows)
            one = self._forget(pad(forget[part]), len(forget), answer_tokens["forget"])
            two = self._retain(pad(retain[part]), answer_tokens["retain"])
            loss = self._case.method.forget_weight * one + self._case.method.retain_weight * two
            loss.backward()
            total += loss.item()
        norm = clip_grad_norm_(self._model.parameters(), clip_norm(self._case.method))
        self._optimizer.step()
        self._optimizer.zero_grad()
        return Outcome(total, norm.item())

    def close(self) -> None:
        pass

    def _forget(self, batch: dict[str, Tensor], examples: int, tokens: int) -> Tensor:
        keys = dict(self._case.method.forget or {})
        logp = answer_logp(self._model, batch)
        if self._reference is None:
            fixed, keys = logp.detach().exp(), keys["weighting"]
            weight = fixed ** keys["beta1"] * (1 - fixed) ** keys["beta2"]
            answer = batch["labels"][:, 1:] != -100
            return (weight * logp)[answer].sum() / tokens
        with torch.no_grad():
            known = answer_logp(self._reference, batch)
        ratio = (logp - known).sum(-1)
        return -2 / keys["beta"] * logsigmoid(-keys["beta"] * ratio).sum() / examples

    def _retain(self, batch: dict[str, Tensor], tokens: int) -> Tensor:
        return self._model(**batch, num_items_in_batch=tokens).loss


class Floor:
    """Only forward and backward of the answers' cross entropy, in the micro-batches of `Ours`."""

    def __init__(self, case: Case) -> None:
        self._case = case
        self._model = case.load().train()

    def step(self, number: int) -> Outcome:
        sequences = [s for group in examples(self._case, number).values() for s in group]
        lengths = [len(s.ids) - 1 for s in sequences]
        total = 0.0
        for rows in deal(lengths, 1, max_tokens=self._case.hardware.tokens)[0]:
            batch = collate([sequences[i] for i in rows])
            hidden = self._model.model(batch.input_ids, use_cache=False).last_hidden_state
            logits = self._model.lm_head(hidden.flatten(0, 1)[batch.index])
            loss = cross_entropy(logits, batch.labels, reduction="sum")
            loss.backward()
            total += loss.item()
        self._model.zero_grad()
        return Outcome(total, float("nan"))

    def close(self) -> None:
        pass


def examples(case: Case, number: int) -> dict[str, list[TokenSequence]]:
    """Return the sequences of a step, by group: the same for every path."""
    sizes = {name: len(group.ids) for name, group in case.groups.items()}
    rows = Schedule(sizes, "forget", case.method.batch, 0).rows(number)
    return {name: [case.groups[name].part("answers").sequences[i] for i, _ in rows[name]] for name in sizes}


def pad(sequences: Sequence[TokenSequence]) -> dict[str, Tensor]:
    """Return ids, attention mask and labels (−100 outside the answers), padded to the longest."""
    shape = (len(sequences), max(len(s.ids) for s in sequences))
    ids, mask = torch.zeros(shape, dtype=torch.long), torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, -100)
    for row, s in enumerate(sequences):
        ids[row, : len(s.ids)] = torch.from_numpy(s.ids)
        mask[row, : len(s.ids)] = 1
        labels[row, s.answer_start : len(s.ids)] = torch.from_numpy(s.ids[s.answer_start :])
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def answer_logp(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Return log-probabilities [B, T − 1] from the logits of all positions, 0 outside the answers."""
    logits = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, :-1]
    return -cross_entropy(logits.transpose(1, 2), batch["labels"][:, 1:], reduction="none")


def _answer_tokens(sequences: Sequence[TokenSequence]) -> int:
    return sum(s.answer_length for s in sequences)
