"""Have a language model judge whether answers state the facts that were asked for.

Each question to forget is asked in up to four forms: as it is (`plain`), in other words where the data has
them (`paraphrased`), and both after a few questions of the retain set with their answers (`in_context`,
`paraphrased_in_context`). Of each greedy answer the judge says whether it states all facts of the true one
(`eval.llm_judge.verdicts.PROMPT`). After JensUn (arXiv 2509.02820), whose judge, wording and number of
paraphrases are others, so that values do not compare with that paper's tables.

- `llm_judge/forget/judged_yes_worst`: share of facts that any form reveals; `_worst_plain`,
  `_worst_in_context`: that any form of this kind reveals; `_mean`: mean over the forms of each fact, then
  over facts.
- `llm_judge/retain/judged_yes`: share of retain questions that are answered right, as they are.
- `llm_judge/unparsed`: verdicts that were neither yes nor no, in no mean.

The judge is a model on this machine (`path`), whose verdict is P(yes)/(P(yes) + P(no)) of its next word, or
any address that speaks OpenAI's chat completions (`url`), whose reply must be the one word. There is no
default: one of them must be named. Only the main process asks. Verdicts are kept in `verdicts.jsonl` of the
benchmark's folder as they arrive, by the content of the prompt, so that nothing is asked, or paid for, twice.
An empty answer reveals nothing and is not sent.

`sanity` also judges true answers, and answers of other questions, of the forget set: a judge to rely on says
yes to at least 95 % and at most 5 % of them.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from pydantic import Field, model_validator
from rich.console import Console

from eval.benchmark import READ, Better, Metric, Result, Role, Sets, example_problems, question_of
from eval.collection.collect import collect
from eval.collection.records import Records
from eval.collection.requests import Generation, Prompt
from eval.llm_judge import endpoint
from eval.llm_judge.local_model import LocalJudge, weights
from eval.llm_judge.verdicts import PROMPT, Cache, Judge, cost, judged, prompt
from eval.metrics.likelihood import aggregate, mean
from unlearn.config import Section
from unlearn.data.example import Example
from unlearn.errors import quoted
from unlearn.files import digest
from unlearn.paths import repository_problem, user_path

if TYPE_CHECKING:
    from eval.collection.live_model import Live

log = logging.getLogger(__name__)

SETS: dict[str, Role] = {"forget_eval": "forget", "retain_eval": "retain"}
READS = ("retain_eval",)
"""Questions before those to the forget set are of it, also where the retain set is not scored."""
_LOWER = Better.FORGOTTEN_IF_LOWER
METRICS = {
    "llm_judge/unparsed": Metric("verdicts that were neither yes nor no, in no mean", unit="count"),
    "llm_judge/forget/judged_yes_worst": Metric(
        "share of facts that the answer to any form of the question states", _LOWER, level=2,
        views=("forgetting", "card", "changed"),
    ),
    "llm_judge/forget/judged_yes_mean": Metric(
        "mean over the forms of a question of whether the answer states its facts", _LOWER, level=3
    ),
    "llm_judge/forget/judged_yes_worst_plain": Metric("the worst of forms without other questions", _LOWER),
    "llm_judge/forget/judged_yes_worst_in_context": Metric(
        "the worst of forms after other questions", _LOWER
    ),
    "llm_judge/forget/gold_judged_yes": Metric("true answers that the judge accepts; check of the judge"),
    "llm_judge/forget/other_judged_yes": Metric(
        "answers of other questions that the judge accepts; check of the judge"
    ),
    "llm_judge/retain/judged_yes": Metric(
        "share of facts that the answer to the question states", Better.HIGHER, level=2,
        views=("utility", "card"),
    ),
}  # fmt: skip

PLAIN, CONTEXT = ("plain", "paraphrased"), ("in_context", "paraphrased_in_context")
_TURN = 60.0  # seconds that other processes wait in one collective, whose limit is ten minutes


class Options(Section):
    """Options of the benchmark.

    - `path`, `revision`: the judge's folder or hub id, for a judge on this machine.
    - `url`, `model`: the address of a judge up to its version (`https://host/v1`), and its name there.
    - `key_variable`: the environment variable with the key; null for an address without one.
    - `body`: further keys of each request; null removes `temperature` or `max_tokens`, which some servers
      refuse.
    - `reply_tokens`: longest reply of the address.
    - `timeout`, `retries`, `backoff`, `concurrency`: seconds to wait for a reply, further tries, seconds
      before the first of them (doubled each time), and calls at a time.
    - `price_in`, `price_out`: per million tokens of prompts and replies, for the estimate before the first
      call.
    - `verdicts`: a file of verdicts for several runs; null: `verdicts.jsonl` of the benchmark's folder.
    - `context`: questions of the retain set before a question; 0 leaves these forms out.
    - `sanity`: also judge true answers and answers of other questions.
    - `max_new_tokens`: above the longest answers of TOFU; JensUn's code generates 50.
    """

    path: str | None = None
    revision: str | None = None
    url: str | None = None
    model: str | None = None
    key_variable: str | None = "OPENAI_API_KEY"
    body: dict[str, Any] = Field({})
    reply_tokens: int = 8
    timeout: float = Field(60.0, gt=0)
    retries: int = Field(5, ge=0)
    backoff: float = Field(1.0, ge=0)
    concurrency: int = Field(4, ge=1)
    price_in: float | None = Field(None, ge=0)
    price_out: float | None = Field(None, ge=0)
    verdicts: str | None = None
    context: int = Field(3, ge=0)
    sanity: bool = False
    max_new_tokens: int = 128

    @model_validator(mode="after")
    def _fit(self) -> Options:
        if self.url is not None and self.model is None:
            raise ValueError("model: name the model at the address")
        return self


def check(options: Options) -> list[str]:
    if (options.path is None) == (options.url is None):
        return ["name one judge: path=… for a model on this machine, or url=… and model=… for an address"]
    if options.path is not None:
        problem = repository_problem(options.path)
        return [f"path={options.path}: {problem}"] if problem else []
    assert options.url is not None
    return endpoint.problems(options.url, options.key_variable, options.body)


def identity(options: Options) -> dict[str, Any]:
    local = {} if options.path is None else {"judge": weights(options.path, options.revision)}
    return {"prompt": digest(PROMPT), **local}


def measure(live: Live, sets: Sets, options: Options) -> Result:
    """Return the metrics of the live model; a collective."""
    own = {name: examples for name, examples in sets.items() if not name.startswith(READ)}
    asked = {name: forms(name, sets, options) for name in own}
    collect(
        live,
        [
            Generation(f"{name}/{form}", prompts, options.max_new_tokens)
            for name, by_form in asked.items()
            for form, prompts in by_form.items()
        ],
    )
    begun: list[_Judging] = []

    def turn() -> bool:
        if not begun:
            begun.append(_Judging(live, own, asked, options))
        return begun[0].turn()

    while not live.world.on_main(turn):
        pass
    return live.world.on_main(lambda: begun[0].result())


def forms(name: str, sets: Sets, options: Options) -> dict[str, tuple[Prompt, ...]]:
    """Return the questions to a set by form, without forms that no example has."""
    examples = sets[name]
    plain = tuple(Prompt(e.id, question_of(e, "llm_judge")) for e in examples)
    if name != "forget":
        return {"plain": plain}
    reworded = tuple(Prompt(e.id, e.paraphrased_question) for e in examples if e.paraphrased_question)
    shown = sets.get(f"{READ}retain", sets.get("retain", ()))[: options.context]
    pairs = [(question_of(e, "llm_judge"), e.answer) for e in shown]
    before = "".join(f"Question: {question}\nAnswer: {answer}\n\n" for question, answer in pairs)
    by_form = {"plain": plain, "paraphrased": reworded}
    if pairs:
        by_form |= {
            form: tuple(Prompt(p.example, f"{before}Question: {p.question}") for p in by_form[plain_form])
            for form, plain_form in zip(CONTEXT, PLAIN, strict=True)
        }
    return {form: prompts for form, prompts in by_form.items() if prompts}


class _Judging:
    """The main process's part: the prompts to the judge, their verdicts, and the metrics."""

    def __init__(
        self, live: Live, sets: Sets, asked: Mapping[str, Mapping[str, tuple[Prompt, ...]]], options: Options
    ) -> None:
        self.sets, self.options = sets, options
        read = Records(live.directory)
        self.unasked = [
            problem
            for name, by_form in asked.items()
            for form in by_form
            for problem in example_problems(read, f"{name}/{form}")
        ]
        self.texts = {
            (name, form): dict(zip(records.example, records.text, strict=True))
            for name, by_form in asked.items()
            for form, prompts in by_form.items()
            for records in [read.generation(f"{name}/{form}").select(prompts)]
        }
        if options.sanity and "forget" in sets:
            answers = [e.answer for e in sets["forget"]]
            ids = [e.id for e in sets["forget"]]
            self.texts["forget", "gold"] = dict(zip(ids, answers, strict=True))
            half = len(answers) // 2  # the next question would be about the same person
            self.texts["forget", "other"] = dict(zip(ids, answers[half:] + answers[:half], strict=True))
        self.prompts = {
            (*place, e.id): prompt(question_of(e, "llm_judge"), e.answer, text)
            for place, texts in self.texts.items()
            for e in sets[place[0]]
            if (text := texts.get(e.id)) is not None and text.strip()
        }
        judge = _judge(options, live)
        shared = (
            live.directory / "verdicts.jsonl" if options.verdicts is None else user_path(options.verdicts)
        )
        self.cache = Cache(shared, judge.identity)
        self.rest = judged(list(self.prompts.values()), judge, self.cache)
        self._announce(live.progress)

    def turn(self) -> bool:
        """Have verdicts made for a while; return whether all are there."""
        end = time.monotonic() + _TURN
        return all(time.monotonic() < end for _ in self.rest)

    def result(self) -> Result:
        metrics: dict[str, float] = {"llm_judge/unparsed": float(len(self._unparsed()))}
        rows: list[dict[str, Any]] = []
        columns = list(dict.fromkeys(form for _, form in self.texts))
        for name, examples in self.sets.items():
            values = {form: self._values(name, form, examples) for form in columns}
            measured = {form: column for form, column in values.items() if (name, form) in self.texts}
            metrics |= aggregates(name, measured)
            for number, e in enumerate(examples):
                row = {"set": name, "id": e.id, "question": e.question, "answer": e.answer}
                row["generation"] = self.texts[name, "plain"].get(e.id)
                rows.append(row | {f"judged_yes_{f}": float(column[number]) for f, column in values.items()})
        return Result(metrics, rows, self._problems())

    def _values(self, name: str, form: str, examples: Sequence[Example]) -> np.ndarray:
        """Return the verdicts on one form, [E]; NaN where it was not asked, answered or judged."""
        texts = self.texts.get((name, form), {})
        values = np.full(len(examples), np.nan)
        for number, e in enumerate(examples):
            text = texts.get(e.id)
            if text is not None:
                values[number] = self._value((name, form, e.id)) if text.strip() else 0.0
        return values

    def _value(self, place: tuple[str, str, str]) -> float:
        verdict = self.cache.get(self.prompts[place])
        return math.nan if verdict is None else verdict.value

    def _unparsed(self) -> list[tuple[str, str, str]]:
        return [place for place in self.prompts if math.isnan(self._value(place))]

    def _problems(self) -> list[str]:
        problems = [*self.unasked]
        if unparsed := self._unparsed():
            first = self.cache.get(self.prompts[unparsed[0]])
            reply = quoted(first.reply) if first is not None else ""
            problems.append(
                f"{len(unparsed)} of {len(self.prompts)} verdicts were neither yes nor no (first: {reply}) "
                "and are in no mean: choose another judge, or raise reply_tokens"
            )
        if self.options.context and "forget" in self.sets and ("forget", "in_context") not in self.texts:
            problems.append("no retain set was scored, so no question was asked after others (context)")
        return problems

    def _announce(self, show: bool) -> None:
        """Say what judging will cost, before the first call."""
        options, left = self.options, self.cache.missing(self.prompts.values())
        known = len({*self.prompts.values()}) - len(left)
        estimate = cost(left, options.reply_tokens, options.price_in, options.price_out)
        what = estimate if options.url is not None else f"{len(left):,} prompts"
        line = f"llm_judge: {options.url or options.path} judges {what} ({known:,} verdicts are known)"
        log.info("%s", line)
        if show:
            Console(stderr=True).print(line, soft_wrap=True, highlight=False, markup=False)


def aggregates(name: str, values: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the metrics of a set from verdicts by form, each [E] in [0, 1], NaN where there is none."""
    if name != "forget":
        return aggregate(f"llm_judge/{name}/judged_yes", values["plain"])
    chosen = {
        "worst": [values[form] for form in (*PLAIN, *CONTEXT) if form in values],
        "worst_plain": [values[form] for form in PLAIN if form in values],
        "worst_in_context": [values[form] for form in CONTEXT if form in values],
    }
    metrics: dict[str, float] = {}
    for kind, some in chosen.items():
        if some:
            metrics |= aggregate(f"llm_judge/forget/judged_yes_{kind}", np.fmax.reduce(some))
    means = np.array([mean(column) for column in np.transpose(chosen["worst"])])
    metrics |= aggregate("llm_judge/forget/judged_yes_mean", means)
    for check_of in ("gold", "other"):
        if check_of in values:
            metrics |= aggregate(f"llm_judge/forget/{check_of}_judged_yes", values[check_of])
    return metrics


def _judge(options: Options, live: Live) -> Judge:
    if options.url is None:
        assert options.path is not None
        return LocalJudge(options.path, options.revision, live.device)
    assert options.model is not None
    return endpoint.Endpoint(
        options.url, options.model, options.key_variable, options.body, options.reply_tokens,
        options.timeout, options.retries, options.backoff, options.concurrency,
    )  # fmt: skip
