"""Rows of different lengths in one flat array."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, eq=False)
class Ragged:
    """Row i is `values[offsets[i]:offsets[i + 1]]`; `values` [N], `offsets` [E + 1]."""

    values: np.ndarray
    offsets: np.ndarray

    @classmethod
    def cut(cls, values: np.ndarray, lengths: np.ndarray) -> Ragged:
        """Cut flat values [N] into rows of these lengths [E]."""
        return cls(values, np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]))

    @classmethod
    def of(cls, rows: Sequence[Sequence[float] | np.ndarray]) -> Ragged:
        """Make a ragged array of rows, in float64."""
        values = np.concatenate([np.asarray(row, dtype=np.float64) for row in rows]) if rows else np.empty(0)
        return cls.cut(values, np.array([len(row) for row in rows], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Ragged]) -> Ragged:
        """Join the rows of several arrays, in order."""
        if not parts:
            return cls.of([])
        return cls.cut(np.concatenate([p.values for p in parts]), np.concatenate([p.lengths for p in parts]))

    @classmethod
    def grouped(cls, values: np.ndarray, owners: Sequence[str], ids: Sequence[str]) -> Ragged:
        """Group values by owner: row i holds those of `ids[i]`, in order, and is empty if there are none."""
        row_of = {owner: i for i, owner in enumerate(ids)}
        rows = np.array([row_of[owner] for owner in owners], dtype=np.int64)
        order = np.argsort(rows, kind="stable")
        return cls.cut(np.asarray(values)[order], np.bincount(rows, minlength=len(ids)))

    @classmethod
    def from_arrow(cls, column: pa.ChunkedArray) -> Ragged:
        """Read a column of lists, one row each."""
        whole = column.combine_chunks()
        lengths = np.diff(whole.offsets.to_numpy())
        return cls.cut(whole.flatten().to_numpy(zero_copy_only=False), lengths)

    def to_arrow(self) -> pa.Array:
        """Return a column of lists, one row each."""
        import pyarrow as pa

        return pa.ListArray.from_arrays(pa.array(self.offsets.astype(np.int32)), pa.array(self.values))

    @property
    def lengths(self) -> np.ndarray:
        """The lengths of the rows, [E]."""
        return np.diff(self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, row: int) -> np.ndarray:
        return self.values[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[row] for row in range(len(self)))

    def take(self, rows: Sequence[int] | np.ndarray) -> Ragged:
        """Return these rows, in this order."""
        chosen = np.asarray(rows, dtype=np.int64)
        lengths = self.lengths[chosen]
        starts = np.repeat(self.offsets[chosen] - (np.cumsum(lengths) - lengths), lengths)
        return Ragged.cut(self.values[starts + np.arange(lengths.sum())], lengths)

    def mean(self) -> np.ndarray:
        """Return the mean of each row in float64, [E]; NaN for an empty row."""
        owner: Any = np.repeat(np.arange(len(self)), self.lengths)
        sums = np.bincount(owner, weights=self.values.astype(np.float64), minlength=len(self))
        with np.errstate(invalid="ignore", divide="ignore"):
            return sums / self.lengths
