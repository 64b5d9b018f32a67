"""The figures of the page as SVG: trade-offs of the arms, paired differences, weights of tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence

from launch.report.claims.arms import Setting
from launch.report.claims.definitions import FORGET, RETAIN, Claim
from launch.report.claims.trial import Difference
from launch.report.claims.verdicts import LIKELIHOODS, Task, Trial, of_likelihood
from launch.report.statistics import interval
from launch.report.svg import COLOURS, GREY, INK, Picture, Scale, fitted

ACROSS, UP = RETAIN, FORGET
_PANEL, _HEIGHT, _LEGEND = 380, 430, 190
_LINE, _LABELS, _PLOT = 22, 330, 330
_COLOURS = (*COLOURS, "#332288", "#ddcc77", "#882255", "#44aa99")


def figure(trials: Sequence[Trial]) -> str | None:
    """Return the figure of a claim over its tasks; None where nothing can be drawn."""
    if trials[0].claim.weights:
        return weights(trials[0].claim)
    if trials[0].claim.figure == "trade-off":
        return trade_off(trials)
    return differences(trials)


def trade_off(trials: Sequence[Trial]) -> str | None:
    """Draw what is left of the forget set against what is kept, a panel for each task.

    A small point is the mean over seeds at one setting, joined in order of the settings; the large one, with
    its intervals, is the chosen one. Diamonds are the target and the retain model.
    """
    drawn = [trial for trial in trials if trial.task is not None and any(_points(trial))]
    if not drawn:
        return None
    names = list(dict.fromkeys(name for trial in drawn for name in trial.arms))
    height = max(_HEIGHT, 90 + 24 * len(names))
    picture = Picture(76 + _PANEL * len(drawn) + _LEGEND, height, drawn[0].claim.claim)
    for place, trial in enumerate(drawn):
        _panel(picture, trial, names, 76 + place * _PANEL)
    for row, name in enumerate(names):
        at = picture.width - _LEGEND + 14, 48 + 24 * row
        picture.dot(at, 6, _colour(names, name))
        picture.text(at[0] + 14, at[1] + 4, name)
    return picture.svg()


def _panel(picture: Picture, trial: Trial, names: Sequence[str], left: int) -> None:
    assert trial.task is not None
    anchors = {role: _middle(trial.task, role) for role in ("target", "retain model")}
    points = [*_points(trial), *(at for at in anchors.values() if at is not None)]
    x = fitted([at[0] for at in points], left, left + _PANEL - 100, unit=True)
    y = fitted([at[1] for at in points], _HEIGHT - 60, 40, unit=True)
    picture.frame(x, y, "retain extraction strength ↑", "forget extraction strength ↓", trial.task.label)
    for name, arm in trial.arms.items():
        colour = _colour(names, name)
        means = [(x(a), y(b)) for each in arm.complete if (at := _mean(each)) is not None for a, b in [at]]
        picture.line(means, colour, 1.2)
        for at in means:
            picture.dot(at, 3.5, colour, 0.6)
        chosen = arm.named(trial.chosen.get(name, ""))
        if chosen is not None:
            _cross(picture, chosen, x, y, colour)
    for role, middle in anchors.items():
        if middle is not None:
            picture.diamond((x(middle[0]), y(middle[1])), 7, INK if role == "target" else GREY)
            picture.text(x(middle[0]) - 12, y(middle[1]) + 4, role, anchor="end")


def _points(trial: Trial) -> Iterator[tuple[float, float]]:
    for arm in trial.arms.values():
        yield from (at for each in arm.complete if (at := _mean(each)) is not None)


def _mean(setting: Setting) -> tuple[float, float] | None:
    at = setting.mean(ACROSS), setting.mean(UP)
    return at if all(map(math.isfinite, at)) else None


def _middle(task: Task, role: str) -> tuple[float, float] | None:
    at = task.anchor(role, ACROSS), task.anchor(role, UP)
    return at if all(map(math.isfinite, at)) else None


def _cross(picture: Picture, setting: Setting, x: Scale, y: Scale, colour: str) -> None:
    at = _mean(setting)
    if at is None:
        return
    for key, middle, scale, turned in ((ACROSS, at[0], x, False), (UP, at[1], y, True)):
        half = interval(run.number(key) for run in setting.runs.values()).half
        if math.isfinite(half):
            ends = [scale(min(max(value, scale.low), scale.high)) for value in (middle - half, middle + half)]
            other = y(at[1]) if not turned else x(at[0])
            picture.line([(other, end) if turned else (end, other) for end in ends], colour, 1.5)
    picture.dot((x(at[0]), y(at[1])), 7, colour)


def _colour(names: Sequence[str], name: str) -> str:
    return _COLOURS[names.index(name) % len(_COLOURS)]


def weights(claim: Claim) -> str:
    """Draw the weight of a token over its likelihood, a curve for each weighting of the claim."""
    picture = Picture(76 + _PANEL + _LEGEND, _HEIGHT, claim.claim)
    x, y = Scale(0, 1, 76, 76 + _PANEL - 30), Scale(0, 1, _HEIGHT - 60, 40)
    picture.frame(x, y, "likelihood of the token", "weight", "")
    for row, each in enumerate(claim.weights):
        curve = list(zip(LIKELIHOODS, of_likelihood(each), strict=True))[::18]
        picture.line([(x(a), y(b)) for a, b in curve], _COLOURS[row], 2)
        at = picture.width - _LEGEND + 14, 48 + 24 * row
        picture.dot(at, 6, _COLOURS[row])
        picture.text(at[0] + 14, at[1] + 4, each.label)
    return picture.svg()


def differences(trials: Sequence[Trial]) -> str | None:
    """Draw each difference with its 95 % interval, right of its line if the claim is right, by task."""
    drawn: Mapping[str, list[Difference]] = {
        trial.task.label: known
        for trial in trials
        if trial.task is not None and (known := [each for each in trial.outcome.differences if each.known])
    }
    every = [each for known in drawn.values() for each in known]
    if not every:
        return None
    rows = sum(1 + len(known) for known in drawn.values())
    picture = Picture(_LABELS + _PLOT + 30, 40 + _LINE * rows + 60, trials[0].claim.claim)
    ends = [end for each in every for end in (each.low, each.high, each.least, 0.0)]
    x = fitted(ends, _LABELS, _LABELS + _PLOT)
    y = Scale(0, rows, 30, 30 + _LINE * rows)
    for value in x.ticks():
        picture.line([(x(value), y.start), (x(value), y.end)], "#e3e3e3")
        picture.text(x(value), y.end + 18, f"{value:.4g}", colour=GREY, anchor="middle")
    picture.text((x.start + x.end) / 2, y.end + 40, "difference, positive as claimed", anchor="middle")
    row = 0.5
    for label, known in drawn.items():
        picture.text(8, y(row) + 4, label, bold=True)
        for each in known:
            row += 1
            _interval(picture, each, x, y(row))
        row += 1
    return picture.svg()


def _interval(picture: Picture, each: Difference, x: Scale, at: float) -> None:
    colour = COLOURS[2] if each.low > each.least else COLOURS[1] if each.high < each.least else GREY
    picture.line([(x(each.least), at - 9), (x(each.least), at + 9)], INK, 1.5)
    picture.line([(x(each.low), at), (x(each.high), at)], colour, 2)
    picture.dot((x(each.mean), at), 5, colour)
    picture.text(_LABELS - 12, at + 4, each.label, anchor="end")
