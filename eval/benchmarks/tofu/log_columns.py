"""Check and order the rows of a JSON log, `{"0": value, "1": value, …}`."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from eval.collection.ragged import Ragged
from unlearn.errors import UserError
from unlearn.reading import describe


class PublishedLogError(UserError):
    """A log cannot be read or lacks something; the message names file, part and what was expected."""


def get(values: Any, key: str, where: str) -> Any:
    """Return the entry of an object.

    Raises:
        PublishedLogError: it is no object, or has no such entry.
    """
    if not isinstance(values, dict):
        raise PublishedLogError(f"{where}: expected an object with {key!r}, found {describe(values)}")
    if key not in values:
        have = ", ".join(list(values)[:16]) or "nothing"
        raise PublishedLogError(f"{where}: has no {key!r}; it has: {have}")
    return values[key]


def number(value: Any, where: str) -> float:
    """Return a finite number.

    Raises:
        PublishedLogError: it is none.
    """
    # Python reads NaN and Infinity in JSON, and true as 1.
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise PublishedLogError(f"{where}: expected a finite number, found {describe(value)}")
    return float(value)


def _number_or_nan(value: Any, where: str) -> float:
    return math.nan if value is None else number(value, where)


@dataclass(frozen=True, eq=False)
class Column:
    """One value per row, in row order; `where` names file and part."""

    values: list[Any]
    where: str

    @classmethod
    def of(cls, rows: Any, where: str) -> Column:
        """Return the values of an object whose keys are 0 … E − 1, in any order."""
        if not isinstance(rows, dict) or not rows or not all(key.isdecimal() for key in rows):
            raise PublishedLogError(
                f'{where}: expected rows {{"0": …, "1": …}}, found {"none" if rows == {} else describe(rows)}'
            )
        last = max(map(int, rows))
        if len(rows) <= last:
            first = next(i for i in range(last + 1) if str(i) not in rows)
            raise PublishedLogError(
                f"{where}: holds {len(rows)} rows but its index runs to {last}; the first missing is {first}"
            )
        return cls([get(rows, str(i), where) for i in range(len(rows))], where)

    def field(self, key: str | int) -> Column:
        """Return the same entry of each row: of an object by name, of a list by index, of null null."""
        if isinstance(key, str):
            own = [None if row is None else get(row, key, self._at(i)) for i, row in enumerate(self.values)]
            return Column(own, self.where)
        for i, row in enumerate(self.values):
            if not isinstance(row, list) or len(row) <= key:
                raise PublishedLogError(
                    f"{self._at(i)}: expected a list of more than {key}, found {describe(row)}"
                )
        return Column([row[key] for row in self.values], self.where)

    def numbers(self) -> np.ndarray:
        """Return numbers, NaN for null, which means "not measured"."""
        return np.array([_number_or_nan(value, self._at(i)) for i, value in enumerate(self.values)])

    def lists(self) -> Ragged:
        """Return rows of one number or more, NaN for null."""
        rows = [value if isinstance(value, list) else [value] for value in self.values]
        for i, row in enumerate(rows):
            if not row:
                raise PublishedLogError(f"{self._at(i)}: expected numbers, found an empty list")
        return Ragged.of([[_number_or_nan(v, self._at(i)) for v in row] for i, row in enumerate(rows)])

    def texts(self) -> tuple[str, ...]:
        """Return texts, empty for null."""
        for i, value in enumerate(self.values):
            if value is not None and not isinstance(value, str):
                raise PublishedLogError(f"{self._at(i)}: expected a text, found {describe(value)}")
        return tuple(value or "" for value in self.values)

    def _at(self, row: int) -> str:
        return f"{self.where}: row {row}"
