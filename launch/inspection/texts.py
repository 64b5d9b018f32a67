"""Collect the texts that the runs of a plan train on and score, and the prompts that they answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from eval.collection.requests import Generation, GradientNorm, Likelihood
from eval.configuration import benchmark_options, evaluation_sets, requests_of
from launch.run.plan import Planned
from unlearn.config import RunConfig
from unlearn.data.example import Example
from unlearn.data.sources import load_sets
from unlearn.data.templates import filled
from unlearn.errors import UserError
from unlearn.probes import watched_sets
from unlearn.terms import training_sets


@dataclass(frozen=True, order=True)
class Text:
    """A text that a run reads; `where` names it in messages.

    `plain`: without a question. `raw`: without the prompt format.
    """

    where: str
    question: str
    answer: str
    plain: bool
    raw: bool

    @property
    def pair(self) -> tuple[str | None, str]:
        return (None if self.plain else self.question, self.answer)


@dataclass(frozen=True)
class Prompt:
    """A question to which the model generates an answer of up to `new` tokens."""

    where: str
    question: str
    new: int
    raw: bool


@dataclass
class Texts:
    """The texts that the runs of one model read; `sampled` are prompts for alternative answers."""

    trained: dict[Text, None]
    scored: dict[Text, None]
    generated: dict[Prompt, None]
    sampled: dict[Prompt, None]

    def prompted(self) -> bool:
        """Return whether any question uses the prompt format."""
        texts = [*self.trained, *self.scored]
        return any(not t.plain and not t.raw for t in texts) or any(not p.raw for p in self.generated)


def texts_of(runs: Sequence[Planned]) -> Texts:
    """Collect the distinct texts of the runs; sets that cannot be read are left out."""
    texts = Texts({}, {}, {}, {})
    for run in runs:
        config = run.job.config
        trained = training_sets(config) | watched_sets(config)
        try:
            sets = load_sets(config.dataset, trained | evaluation_sets(config))
        except UserError:  # the inspection of rows reports it
            continue
        texts.trained |= dict.fromkeys(
            Text(e.id, (e.question or "") + e.opening, e.answer, e.question is None, False)
            for name in sorted(trained & sets.keys())
            for e in sets[name]
        )
        texts.sampled |= dict.fromkeys(_sampled(config, sets))
        scored = {n: rows[: config.eval.limit] for n, rows in sets.items() if n in evaluation_sets(config)}
        for name in config.eval.benchmarks:
            for request in requests_of(name, scored, benchmark_options(config, name)):
                where = f"{name}/{request.name}"
                if isinstance(request, Likelihood | GradientNorm):
                    texts.scored |= dict.fromkeys(
                        Text(where, i.question or "", i.answer, i.question is None, request.raw)
                        for i in request.items
                    )
                elif isinstance(request, Generation):
                    texts.generated |= dict.fromkeys(
                        Prompt(where, i.question + i.opening, request.max_new_tokens, request.raw)
                        for i in request.items
                    )
    return texts


def _sampled(config: RunConfig, sets: Mapping[str, Sequence[Example]]) -> Iterator[Prompt]:
    cfg = config.method.alternatives
    if cfg.source != "sampled" or "forget" not in training_sets(config):
        return
    for example in sets.get("forget", ()):
        prompt = filled(cfg.prompt or "{question}", question=example.question or "", answer=example.answer)
        yield Prompt("method.alternatives", prompt, cfg.max_new_tokens, False)
