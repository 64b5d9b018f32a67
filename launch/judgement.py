"""The models of a comparison judged beside each other."""

from __future__ import annotations

from collections.abc import Mapping

from eval.judgement.judge import Judged, judge

Column = Mapping[str, float | None]


def judged_columns(columns: Mapping[str, Column], *, own_target: bool = False) -> dict[str, Judged]:
    """Each model judged beside the columns `target` and `retain model`, as far as there are those.

    own_target: the last column is the target itself where no other is, as when a model is only evaluated.
    """
    last = list(columns.values())[-1] if own_target else {}
    target, retain = columns.get("target", last), columns.get("retain model", {})
    return {title: judge(column, target, retain) for title, column in columns.items()}


def with_judgement(
    columns: Mapping[str, Column], *, own_target: bool = False
) -> dict[str, dict[str, float | None]]:
    """The columns with the `judged/…` that they have beside each other: their files know no others."""
    judged = judged_columns(columns, own_target=own_target)
    plain = {t: {k: v for k, v in c.items() if not k.startswith("judged/")} for t, c in columns.items()}
    return {title: {**judged[title].metrics, **column} for title, column in plain.items()}
