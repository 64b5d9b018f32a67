"""The page of the claims: verdicts, each claim with its figure and numbers, what the runs took. Markdown."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

from launch.report import markdown
from launch.report.claims.arms import RATE
from launch.report.claims.budget import budget, made, repeated
from launch.report.claims.definitions import FORGET, MIXED, RETAIN, Claim, Level
from launch.report.claims.trial import LEVEL, Difference, holm, written
from launch.report.claims.verdicts import Task, Trial
from launch.report.kept import KeptRun
from launch.report.results_table import format_value

NO_RUNS = "cannot tell (no runs)"
_ANCHORS = {
    "extraction strength left": FORGET,
    "kept": RETAIN,
    "utility": "tofu/model_utility",
    "ROUGE-L recall left": "tofu/forget/rougeL_recall",
}
_HOW = f"""\
**How.** Compared methods have the same number of steps, batch and retain data; the weights of their terms
and their exponents are the presets', unless a claim chooses them. Of each method the setting is the one
with the best mean over seeds on the selection items, a quarter of each set (`eval.select.share`) that is
not reported: by the calibrated extraction strength left, or where the claim is about what is kept, by
retain minus forget extraction strength (`select/margin`). *Settings* says of how many, and which number is
an end of those tried with all else alike. All figures are of the rest. Where settings chosen by the
reported items themselves, which is too kind to all, would give another verdict, it says which. *Calibrated*
metrics are of the mixture with the target that keeps at least 95 % of its retention
(`eval=[tofu,calibrated]`), which is what "at equal retention" means here. α is the share of the unlearned
model in it, in steps of 1/64: 1 where it keeps that much by itself; where α is small the method has ruined
the model, and what is compared is mostly the target. *Keeps* is the retention of the mixture; more than
0.95 is a disadvantage. Trade-offs are drawn without mixing. A *spread* is the largest minus the smallest
value over the learning rates that both methods have. What the probe gives for a run (`geffect/…`) is
defined in [geffect.md](geffect.md#what-is-measured). A difference is paired by seed and positive as
claimed; its interval is Student's t of 95 %. It is about seeds: on TOFU these differ in the order of the
data alone, and the target, the retain model and the items are the same, so that an interval says nothing of
other items or another target. **Holds**: every interval of the claim lies above its bound. **Does not
hold**: one difference lies below it with p < {LEVEL:g} (`p against`), adjusted after Holm for the
comparisons of the claim. **Cannot tell**: anything else, with the reason; in the table, how many intervals
lie above and below their bounds, which is not adjusted for their number. **‡**: a verdict with a learning
rate that is an end of those tried; another could come of a rate beyond it."""


_ENDS = """\
What no method has changed, means over seeds. A model that leaves less than the retain model, which never saw
the forget set, has not forgotten more: in differences of what is left each side counts as no less than the
retain model of the same seed leaves. **†** marks comparisons where both sides leave no more than it in every
seed, so that the difference is 0. *Means* are as measured."""


def page(
    trials: Sequence[Trial], every: Sequence[Task], runs: Sequence[KeptRun], figures: Mapping[str, str],
    levels: Sequence[Level], published: str,
) -> str:  # fmt: skip
    """Return the page. figures: the address of each claim's figure by the claim's id."""
    parts = ["# Claims of the papers, tried", _about(trials), summary(trials, every), _anchors(every), _HOW]
    for paper in dict.fromkeys(trial.claim.paper for trial in trials):
        parts.append(f"## {markdown.linked(paper)}")
        for claim in dict.fromkeys(trial.claim.id for trial in trials if trial.claim.paper == paper):
            own = [trial for trial in trials if trial.claim.id == claim]
            parts += _claim(own[0].claim, own, figures.get(claim))
    parts += ["## What it took", budget(every, runs), *made(levels, every), *repeated(every), published]
    return "\n\n".join(parts) + "\n"


def _about(trials: Sequence[Trial]) -> str:
    compared = {
        (trial.task.label if trial.task else "", each.label, each.least, each.means)
        for trial in trials
        for each in trial.outcome.differences
        if each.known
    }
    known = len(compared)
    by_chance = (
        f" Intervals of 95 % miss by chance: of {known}, about {known * LEVEL:.0f}; but many share runs."
        if known
        else ""
    )
    claims = len({trial.claim.id for trial in trials})
    return (
        "Made by `unlearn claims` from the results of runs; by hand are only the claims themselves and what "
        "would change a verdict. A verdict is about the models and data of its column, not the paper's. "
        f"{claims} claims, {known} different comparisons.{by_chance}"
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


def _anchors(every: Sequence[Task]) -> str:
    """Return a table of what the models leave and keep that no method has changed."""
    rows = []
    for task in every:
        for role in ("target", "retain model"):
            values = [task.anchor(role, key) for key in _ANCHORS.values()]
            if not all(map(math.isnan, values)):
                rows.append((task.label, role, *map(format_value, values)))
    if not rows:
        return "Neither targets nor retain models are among the runs."
    return f"{_ENDS}\n\n{markdown.table(('on', 'model', *_ANCHORS), rows)}"


def _verdict(trials: Sequence[Trial], label: str) -> str:
    for trial in trials:
        if trial.task is None and trial.claim.weights:
            return f"{trial.outcome.verdict} (by definition)"
        if trial.task is not None and trial.task.label == label:
            at_end = any(arm.at_end(trial.chosen.get(name, ""), RATE) for name, arm in trial.arms.items())
            mark = " ‡" if at_end and trial.outcome.verdict != "cannot tell" else ""
            return f"{trial.outcome.verdict}{_part(trial)}{mark}"
    return NO_RUNS


def _part(trial: Trial) -> str:
    """Say on which side of their bounds several intervals lie where the runs cannot tell."""
    every = trial.outcome.differences
    known = [each for each in every if each.known]
    if trial.outcome.verdict != "cannot tell" or len(every) < 2:
        return ""
    counted = []
    if known:
        counted.append(f"{sum(each.above for each in known)} of {len(known)} above")
    if below := sum(each.below for each in known):
        counted.append(f"{below} below")
    if beyond := sum(each.beyond for each in known):
        counted.append(f"{beyond} †")
    if len(known) < len(every):
        counted.append(f"{len(every) - len(known)} missing")
    return f" ({', '.join(counted)})"


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
        parts.append(
            f"**{where}{trial.outcome.verdict}** – {trial.outcome.reason}.{_kindest(trial)}{_chosen(trial)}"
        )
    return [*parts, f"What would change it: {claim.changes}."]


def _kindest(trial: Trial) -> str:
    """Say what the verdict would be with settings that are chosen by the reported items, if another."""
    if trial.kindest in (None, trial.outcome.verdict):
        return ""
    return f" With settings chosen by the reported items themselves: {trial.kindest}."


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
    means = " / ".join(map(format_value, each.means)) or "–"
    return f"{means} †" if each.beyond else means


def _p(each: Difference, p: float) -> str:
    return f"{p:.2g}" if each.known else "–"


def _chosen(trial: Trial) -> str:
    """Return the chosen settings, of how many, and for calibrated metrics α and what the mixture keeps; for
    others what the model leaves of the forget set."""
    if not trial.chosen:
        return ""
    named = []
    for name, label in trial.chosen.items():
        arm = trial.arms.get(name)
        setting = None if arm is None else arm.named(label)  # none for a spread, which is over all settings
        notes = []
        if arm is not None and setting is not None:
            notes.append(arm.place(label))
            share, left = setting.mean(f"{MIXED}alpha"), setting.mean(FORGET)
            if trial.claim.metric.startswith(MIXED) and math.isfinite(share):
                kept = setting.mean(f"{MIXED}retention")
                notes.append(f"α {share:.2f}{f', keeps {kept:.3f}' if math.isfinite(kept) else ''}")
            elif math.isfinite(left):
                notes.append(f"leaves {left:.3f}")
        named.append(f"{name} {label} ({', '.join(notes)})" if notes else f"{name} {label}")
    return f" Settings: {'; '.join(named)}."
