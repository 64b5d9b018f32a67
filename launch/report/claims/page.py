"""The page of the claims: verdicts, each claim with its figure and numbers, what the runs took. Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

from launch.report import markdown
from launch.report.claims.arms import RATE
from launch.report.claims.definitions import Claim
from launch.report.claims.trial import LEVEL, Difference, holm, written
from launch.report.claims.verdicts import Task, Trial
from launch.report.kept import KeptRun
from launch.report.results_table import format_value

NO_RUNS = "cannot tell (no runs)"
_BUILDS = "build the"
_HOW = f"""\
**How.** Compared methods have the same number of steps, batch and retain data. Of each the learning rate
(and what the claim names) is the one with the best mean over seeds on the selection items, a part of each
set that is not reported; all figures are of the rest; where it is an end of what was tried, the page says
so. *Calibrated* metrics are of the mixture with the target that keeps 95 % of its retention
(`eval=[tofu,calibrated]`), so that forgetting is compared at equal retention. A difference is paired by
seed and positive as claimed; its interval is Student's t of 95 %. **Holds**: every interval of the claim
lies above its bound. **Does not hold**: one difference lies below it with p < {LEVEL:g} (`p against`),
adjusted after Holm for the comparisons of the claim. **Cannot tell**: anything else, with the reason."""


def page(
    trials: Sequence[Trial], every: Sequence[Task], runs: Sequence[KeptRun], figures: Mapping[str, str],
    published: str,
) -> str:  # fmt: skip
    """Return the page. figures: the address of each claim's figure by the claim's id."""
    parts = ["# Claims of the papers, tried", _about(trials), summary(trials, every), _HOW]
    for paper in dict.fromkeys(trial.claim.paper for trial in trials):
        parts.append(f"## {markdown.linked(paper)}")
        for claim in dict.fromkeys(trial.claim.id for trial in trials if trial.claim.paper == paper):
            own = [trial for trial in trials if trial.claim.id == claim]
            parts += _claim(own[0].claim, own, figures.get(claim))
    parts += ["## What it took", budget(every, runs), published]
    return "\n\n".join(parts) + "\n"


def _about(trials: Sequence[Trial]) -> str:
    known = [each for trial in trials for each in trial.outcome.differences if each.known]
    by_chance = (
        f" Intervals of 95 % miss by chance: of {len(known)}, about {len(known) * LEVEL:.0f}."
        if known
        else ""
    )
    claims = len({trial.claim.id for trial in trials})
    return (
        "Made by `unlearn claims` from the results of runs; by hand are only the claims themselves and what "
        "would change a verdict. A verdict is about the models and data of its column, not the paper's. "
        f"{claims} claims, {len(known)} comparisons.{by_chance}"
    )


def summary(trials: Sequence[Trial], every: Sequence[Task]) -> str:
    """Return the table of verdicts: a row for each claim, a column for each task."""
    labels = [task.label for task in every]
    rows = []
    for claim in dict.fromkeys(trial.claim.id for trial in trials):
        own = [trial for trial in trials if trial.claim.id == claim]
        cells = [_verdict(own, label) for label in labels]
        rows.append((f"[{claim}](#{markdown.anchor(claim)})", own[0].claim.claim, *cells))
    return markdown.table(("", "claim", *labels), rows)


def _verdict(trials: Sequence[Trial], label: str) -> str:
    for trial in trials:
        if trial.task is None and trial.claim.weights:
            return f"{trial.outcome.verdict} (by definition)"
        if trial.task is not None and trial.task.label == label:
            return f"{trial.outcome.verdict}{_part(trial)}"
    return NO_RUNS


def _part(trial: Trial) -> str:
    """Say how many of several comparisons hold where the runs cannot tell."""
    every = trial.outcome.differences
    known = [each for each in every if each.known]
    if trial.outcome.verdict != "cannot tell" or len(every) < 2:
        return ""
    missing = f"{len(every) - len(known)} missing"
    if not known:
        return f" ({missing})"
    holding = f"{sum(each.low > each.least for each in known)} of {len(known)} hold"
    return f" ({holding})" if len(known) == len(every) else f" ({holding}, {missing})"


def _claim(claim: Claim, trials: Sequence[Trial], figure: str | None) -> list[str]:
    parts = [
        f"### {claim.id}",
        f"{claim.claim}. (Paper: {claim.where}.)",
        f"Run: {_code(claim.run)}. Metric: {_metrics(claim)}.",
    ]
    if figure is not None:
        parts.append(f"![{claim.claim}]({figure})")
    rows = [row for trial in trials for row in _rows(trial)]
    if rows:
        parts.append(
            markdown.table(
                ("on", "comparison", "means", "difference (95 % interval)", "bound", "seeds", "p against"),
                rows,
            )
        )
    for trial in trials:
        where = f"{trial.task.label}: " if trial.task is not None else ""
        parts.append(f"**{where}{trial.outcome.verdict}** – {trial.outcome.reason}.{_chosen(trial)}")
    return [*parts, f"What would change it: {claim.changes}."]


def _code(run: str) -> str:
    """Mark experiments as code; other texts stay."""
    return re.sub(r"experiment=[^,]+(,(?=\S)[^,]+)*", lambda found: f"`unlearn -m {found[0]}`", run)


def _metrics(claim: Claim) -> str:
    keys = dict.fromkeys([claim.metric, *(each.metric for each in claim.comparisons if each.metric)])
    return "rank correlation" if claim.weights else ", ".join(f"`{key}`" for key in keys)


def _rows(trial: Trial) -> list[tuple[str, ...]]:
    differences = trial.outcome.differences
    adjusted = holm([each.against for each in differences])
    label = trial.task.label if trial.task is not None else ""
    return [
        (label, each.label, _means(each), written(each), f"{each.least:g}", str(each.n or "–"), _p(each, p))
        for each, p in zip(differences, adjusted, strict=True)
    ]


def _means(each: Difference) -> str:
    return " / ".join(map(format_value, each.means)) or "–"


def _p(each: Difference, p: float) -> str:
    return f"{p:.2g}" if each.known else "–"


def _chosen(trial: Trial) -> str:
    """Return the chosen settings; one at an end of its grid might be better beyond it, and says so."""
    if not trial.chosen:
        return ""
    named = []
    for name, label in trial.chosen.items():
        edge = trial.arms[name].edge(label) if name in trial.arms else ""
        named.append(f"{name} {label}{f' ({edge})' if edge else ''}")
    return f" Settings: {'; '.join(named)}."


def budget(every: Sequence[Task], runs: Sequence[KeptRun]) -> str:
    """Return a table of runs, minutes and processors: of each task, and of what made targets."""
    rows = []
    for task in every:
        own = task.of("run")
        rows.append((task.label, _counts(own), *_took([*own, *task.of("target"), *task.of("retain model")])))
    made = [run for run in runs if run.role.startswith(_BUILDS)]
    if made:
        rows.append(("targets and retain models", f"{len(made)} trainings", *_took(made)))
    return markdown.table(("", "runs", "minutes", "processor"), rows)


def _counts(runs: Sequence[KeptRun]) -> str:
    seeds = len({repr(run.seed) for run in runs})
    rates = len({repr(run.value(RATE)) for run in runs})
    methods = len({run.method for run in runs})
    return f"{len(runs)}: {methods} methods, {rates} learning rates, {seeds} seeds"


def _took(runs: Iterable[KeptRun]) -> tuple[str, str]:
    counted = list(runs)
    seconds = [run.seconds for run in counted if run.seconds == run.seconds]
    processors = ", ".join(sorted({run.processor for run in counted if run.processor})) or "–"
    return f"{sum(seconds) / 60:.0f}", processors
