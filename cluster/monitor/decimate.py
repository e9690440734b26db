"""Curves of a million points as a thousand: the smallest and the largest value of each bin, in the order in which they came.

In:  a column of values, one per step.
Out: two values per bin, so that no spike is lost; NaN where a bin holds no value.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Column = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Bins:
    """Consecutive ranges of rows, none empty."""

    starts: npt.NDArray[np.int64]
    """First row of each bin."""
    end: int
    """Row after the last bin."""

    @classmethod
    def over(cls, begin: int, end: int, count: int) -> Bins:
        """Cut the rows begin..end into at most `count` bins of equal size."""
        count = max(1, min(count, end - begin))
        return cls(begin + (np.arange(count, dtype=np.int64) * (end - begin)) // count, end)

    @property
    def whole(self) -> bool:
        """Whether every bin is one row, so that nothing is left out."""
        return self.end - int(self.starts[0]) == len(self.starts)

    @property
    def rows_each(self) -> int:
        """Rows of a bin, rounded down."""
        return (self.end - int(self.starts[0])) // len(self.starts)

    @property
    def lasts(self) -> npt.NDArray[np.int64]:
        """Last row of each bin."""
        return np.append(self.starts[1:], self.end) - 1

    def rows(self) -> npt.NDArray[np.int64]:
        """Return the rows that stand for the points: each row, or the first and the last one of each bin."""
        if self.whole:
            return self.starts
        return np.stack([self.starts, self.lasts], axis=1).reshape(-1)

    def values(self, column: Column) -> Column:
        """Return the points of a column, at the places of `rows`."""
        if self.whole:
            return column[self.starts]
        low = np.fmin.reduceat(column[: self.end], self.starts)
        high = np.fmax.reduceat(column[: self.end], self.starts)
        return self._ordered(column, low, high)

    def values_of_blocks(self, column: Column, ends: Column, size: int) -> Column:
        """Return the points of a column from the smallest and largest values of its blocks of `size` rows (rows 0 and 1 of `ends`).

        A bin takes the blocks that begin in it, and the last one also the rows after the last whole block: a value may stand up to a
        block beside its place, and none is lost.
        """
        blocks = np.minimum(self.starts // size, ends.shape[1] - 1)
        last = min(-(-self.end // size), ends.shape[1])
        low, high = np.fmin.reduceat(ends[0, :last], blocks), np.fmax.reduceat(ends[1, :last], blocks)
        rest = column[ends.shape[1] * size : self.end]
        if len(rest):
            low[-1], high[-1] = np.fmin(low[-1], np.fmin.reduce(rest)), np.fmax(high[-1], np.fmax.reduce(rest))
        return self._ordered(column, low, high)

    def _ordered(self, column: Column, low: Column, high: Column) -> Column:
        with np.errstate(invalid="ignore"):
            falls = column[self.starts] > column[self.lasts]
        first, second = np.where(falls, high, low), np.where(falls, low, high)
        return np.stack([first, second], axis=1).reshape(-1)


def plain(values: Column | Sequence[float]) -> list[float | None]:
    """Return values for JSON: six digits, and None for what is no finite number."""
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in np.asarray(values, dtype=np.float64).tolist()]
