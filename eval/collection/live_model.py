"""A loaded model with the passes that benchmarks need; all processes share the work."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import nn

from eval.collection.ragged import Ragged
from eval.collection.records import TOKEN_COLUMNS
from eval.collection.shared_prompts import Row, collate_rows, rows_of
from eval.collection.turns import turns
from unlearn import interventions
from unlearn.data.batching import Batch, collate
from unlearn.data.tokenization import Encoder, TokenSequence
from unlearn.distributed import ALONE, World
from unlearn.passes.forward import TokenRecord, record
from unlearn.passes.generate import Perturb, end_tokens, generate
from unlearn.passes.head import unwrap
from unlearn.passes.memory_limits import Key
from unlearn.passes.module_modes import evaluating
from unlearn.passes.out_of_memory import Bins, in_portions
from unlearn.passes.per_example.gradient_norms import gradient_norms
from unlearn.passes.products import fast_linear_layers
from unlearn.passes.unpadded import runs_unpadded

T = TypeVar("T")


@dataclass
class Live:
    """A transformers model (not its engine), its encoder, and the settings of passes over it.

    `max_tokens` bounds rows × longest of a forward, `max_gradient_tokens` of one with a backward (None: as
    many), `max_rows` the number of sequences generated together. Inputs are moved to `device`. The methods
    are collectives: every process calls them with the same arguments and gets all results. `shares_prompts`
    says whether answers to one prompt share its computation; None until the first answers that could, which
    try it.
    """

    model: nn.Module
    encoder: Encoder
    directory: Path
    world: World = ALONE
    max_tokens: int = 16_384
    max_rows: int = 128
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    progress: bool = False
    static_cache: bool = False
    max_gradient_tokens: int | None = None
    shares_prompts: bool | None = field(default=None, init=False)

    def read(self, sequences: Sequence[TokenSequence], *, label: str = "answers") -> dict[str, Ragged]:
        """Compute the columns of `unlearn.passes.forward.TokenRecord` per answer token, a row per sequence.

        Sequences with the same prompt share its computation where the model supports it.
        """
        rows = rows_of(sequences, shared=self._shares(sequences))

        def forward(part: list[int], limit: int) -> TokenRecord:
            return record(self.model, self._batch(sequences, [rows[j] for j in part]), limit)

        answers = [sum(sequences[i].answer_length for i in row.members) for row in rows]
        with fast_linear_layers(self.model):
            records = self._passes([row.width for row in rows], answers, forward, label)
        order = [i for part, _ in records for j in part for i in rows[j].members]
        # Copied from the device once, at the end: a copy per batch would make the host wait for each.
        mine: dict[str, np.ndarray] = {"rows": np.array(order, dtype=np.int64)}
        for name in (*TOKEN_COLUMNS, "lengths"):
            parts = [getattr(each, name) for _, each in records]
            mine[name] = torch.cat(parts).cpu().numpy() if parts else np.empty(0)
        gathered = [part for part in self.world.gather([mine]) if len(part["rows"])]
        if not gathered:
            return {name: Ragged.of([]) for name in TOKEN_COLUMNS}
        whole = {name: np.concatenate([part[name] for part in gathered]) for name in mine}
        back = np.argsort(whole.pop("rows"))
        lengths = whole.pop("lengths").astype(np.int64)
        return {name: Ragged.cut(values, lengths).take(back) for name, values in whole.items()}

    def norms(self, sequences: Sequence[TokenSequence], *, label: str = "gradients") -> np.ndarray:
        """Compute the gradient norm of each answer, [E]; see `unlearn.passes.per_example.gradient_norms`.

        The gradient is of all parameters except adapters, whichever are trained, so that the model has the
        same norms after it was saved with merged adapters and loaded again.
        """

        def backward(part: list[int], _: int) -> list[float]:
            batch = collate([sequences[i] for i in part]).to(self.device)
            norms: list[float] = gradient_norms(self.model, batch).tolist()
            return norms

        with _all_trained(self.model):
            parts = self._passes(
                [len(s.ids) - 1 for s in sequences], [s.answer_length for s in sequences], backward, label,
                key="gradient_tokens", portion=self.max_gradient_tokens,
            )  # fmt: skip
        values = np.full(len(sequences), np.nan)
        pairs = [pair for part, norms in parts for pair in zip(part, norms, strict=True)]
        for i, value in self.world.gather(pairs):
            values[i] = value
        return values

    def answers(
        self,
        prompts: Sequence[Sequence[int]],
        begun: Sequence[Sequence[int]] = (),
        *,
        max_new_tokens: int,
        label: str = "generations",
        perturb: Perturb | None = None,
    ) -> list[list[int]]:
        """Generate tokens for each prompt, until the first end token: greedily, unless `perturb` is set.

        begun: the first tokens of each answer, as far as they are known.
        """
        with (
            evaluating(self.model),
            fast_linear_layers(self.model),
            self._bar(label, len(prompts)) as advance,
        ):
            return generate(
                self.model,
                prompts,
                max_new_tokens=max_new_tokens,
                end_ids=end_tokens(self.model, self.encoder.end_id),
                pad_id=self.encoder.pad_id,
                max_rows=self.max_rows,
                world=self.world,
                device=self.device,
                begun=begun,
                advance=lambda n: advance(n * self.world.size),
                perturb=perturb,
                static_cache=self.static_cache,
            )

    @property
    def context(self) -> int | None:
        """The model's context length in tokens; None where its configuration does not name one."""
        config: Any = unwrap(self.model).config.get_text_config(decoder=True)
        return getattr(config, "max_position_embeddings", None)

    def _passes(
        self, widths: Sequence[int], answers: Sequence[int], call: Callable[[list[int], int], T], label: str,
        *, key: Key = "eval_tokens", portion: int | None = None,
    ) -> list[tuple[list[int], T]]:  # fmt: skip
        """Call `call(part, limit)` for each part of this process's share and return parts and results.

        A part has up to `portion` tokens (None: `max_tokens`), which `hardware.key` sets. `limit` is the
        largest number of answer tokens in any process's part of that turn.
        """
        if not widths:
            return []

        def computed(bins: Bins) -> list[tuple[list[int], T]]:
            results = []
            with evaluating(self.model), self._bar(label, len(widths)) as advance:
                for part, called, limit in turns(self.world, bins, answers):
                    result = call(called, limit)
                    results += [(part, result)] if part else []
                    advance(len(part) * self.world.size)
            return results

        return in_portions(
            self.world, key, portion or self.max_tokens, widths, computed,
            collective=self.world.collective_forward,
        )  # fmt: skip

    def _shares(self, sequences: Sequence[TokenSequence]) -> bool:
        """Whether answers can share a prompt: the model accepts positions and a tree mask, and a trial gives
        the same numbers as one answer at a time.
        """
        rows = [row for row in rows_of(sequences, shared=True) if len(row.members) > 1]
        if not rows:
            return False
        base: Any = unwrap(self.model)
        base = base.get_base_model() if hasattr(base, "get_base_model") else base
        config = base.config.get_text_config(decoder=True)
        window = getattr(config, "sliding_window", None)
        if window is not None and max(len(s.ids) for s in sequences) > window:
            return False
        if self.shares_prompts is None:
            able = (
                not interventions.attached(base)
                and config._attn_implementation in ("sdpa", "eager")
                and {"position_ids", "attention_mask"} <= set(inspect.signature(base.forward).parameters)
            )
            self.shares_prompts = able and self._tried(sequences, max(rows, key=lambda row: row.width))
        return self.shares_prompts

    def _tried(self, sequences: Sequence[TokenSequence], row: Row) -> bool:
        with evaluating(self.model):
            shared = record(self.model, self._batch(sequences, [row])).logp
            separate = record(self.model, collate([sequences[i] for i in row.members]).to(self.device)).logp
        # Above the rounding of the compute precision; a model that ignores the tree mask is off by nats.
        tolerance = 0.01 if next(self.model.parameters()).dtype == torch.float32 else 0.3
        return bool((shared - separate).abs().max() < tolerance)

    def _batch(self, sequences: Sequence[TokenSequence], rows: Sequence[Row]) -> Batch:
        if all(len(row.members) == 1 for row in rows):
            return collate([sequences[row.members[0]] for row in rows]).to(self.device)
        dtype, in_pieces = next(self.model.parameters()).dtype, runs_unpadded(self.model)
        return collate_rows(sequences, rows, dtype=dtype, in_pieces=in_pieces).to(self.device)

    @contextmanager
    def _bar(self, description: str, total: int) -> Iterator[Callable[[int], None]]:
        if not (self.progress and self.world.main):
            yield lambda _: None
            return
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as bar:
            task = bar.add_task(description, total=total)
            yield lambda n: bar.advance(task, n)


@contextmanager
def _all_trained(model: nn.Module) -> Iterator[None]:
    """Let every parameter except adapters require a gradient, and restore the flags afterwards."""
    before = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parameter.is_floating_point() and ".lora_" not in name)
        yield
    finally:
        for parameter, trained in before:
            parameter.requires_grad_(trained)
