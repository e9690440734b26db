"""The rows of the shards that are being read, as columns in which many samples are looked up at once.

In:  sample numbers of one bucket; the tables of their shards (shard_tables.py).
Out: `Places`: keys, captions, and where each sample's members lie, in the order of the numbers.

Training stays within a window of shards (pretrain/data/sample_order.py): the rows of a shard are read when its first sample is
asked for, and let go when enough other shards were used since.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from pipeline.shards.reader import Numbers
from pipeline.shards.shard_tables import ShardList, ShardTables

CAPACITY = 32
"""Shards of a bucket whose rows are held in any case; twice as many may be."""
TEXTS = ("key", "caption", "bits_xxh3")
NUMBERS = ("bits_offset", "bits_size", "bits_raw")
FEATURES = ("feat_xxh3",), ("feat_offset", "feat_size")
"""Columns of texts and of numbers that only shards with features need."""
ABSENT = -1
"""Stands for an empty cell in a column of numbers."""


@dataclass(frozen=True)
class Places:
    """Some samples of one bucket, in the order in which they were asked for."""

    shards: list[str]
    """The name of each one's shard."""
    rows: list[int]
    """The row of each in the columns."""
    texts: dict[str, list[Any]]
    """Columns of texts; None for an empty cell."""
    numbers: dict[str, Numbers]
    """Columns of numbers."""

    def take(self, numbers: Sequence[int]) -> Places:
        """Return some of the samples, by their place among these."""
        return Places([self.shards[n] for n in numbers], [self.rows[n] for n in numbers], self.texts, self.numbers)

    @property
    def featured(self) -> int:
        """How many of the samples have features."""
        return int((self.number("feat_offset") != ABSENT).sum()) if "feat_offset" in self.numbers else 0

    @property
    def have_features(self) -> bool:
        """Whether all of the samples have features."""
        return self.featured == len(self.rows)

    def text(self, name: str) -> list[Any]:
        """Return the samples' cells of a column of texts."""
        column = self.texts[name]
        return [column[row] for row in self.rows]

    def number(self, name: str) -> Numbers:
        """Return the samples' cells of a column of numbers."""
        return self.numbers[name][self.rows]


class SampleWindow:
    """The rows that are held of one bucket. Thread-safe."""

    def __init__(self, tables: ShardTables, shards: ShardList, *, features: bool) -> None:
        self.shards, self.capacity = shards, CAPACITY
        texts, numbers = ((*TEXTS, *FEATURES[0]), (*NUMBERS, *FEATURES[1])) if features else (TEXTS, NUMBERS)
        self._tables = tables
        self._lock = threading.Lock()
        self._calls = 0
        self._used: dict[int, int] = {}
        """For each shard that is held, the call that last used it."""
        self._firsts = np.empty(len(shards.rows), dtype=np.int64)
        """The row with which each shard begins, of those that are held."""
        self._names: dict[int, str] = {}
        """The names of the shards that are held."""
        self._texts: dict[str, list[Any]] = {name: [] for name in texts}
        self._numbers: dict[str, Numbers] = {name: np.empty(0, np.int64) for name in numbers}

    def find(self, numbers: Numbers) -> Places:
        """Return the places of some samples. Raises IndexError for a number out of range."""
        shards, within = self.shards.find(numbers)
        with self._lock:
            self._calls += 1
            listed = shards.tolist()
            used = dict.fromkeys(listed, self._calls)
            self._used.update(used)
            if not used.keys() <= self._names.keys():
                if len(self._used) > 2 * self.capacity:
                    self._let_go()
                self._append(sorted(used.keys() - self._names.keys()))
            rows = (self._firsts[shards] + within).tolist()
            return Places([self._names[shard] for shard in listed], rows, self._texts, self._numbers)

    def _append(self, missing: list[int]) -> None:
        """Read the rows of these shards. Places found earlier stay valid: columns only grow, and are replaced when they shrink."""
        table = self._tables.read(self.shards, missing, [*self._texts, *self._numbers])
        self._names.update(zip(missing, self.shards.names.take(pa.array(missing)).to_pylist(), strict=True))
        sizes = self.shards.rows[missing]
        self._firsts[missing] = len(self._texts["key"]) + np.cumsum(sizes) - sizes
        for name, column in self._texts.items():
            column.extend(table[name].to_pylist())
        self._numbers = {name: np.concatenate([column, _filled(table[name])]) for name, column in self._numbers.items()}

    def _let_go(self) -> None:
        """Let go of all but the `capacity` shards that were used last, and those of this call."""
        newest = sorted(self._used, key=lambda shard: (-self._used[shard], shard))
        current = sum(call == self._calls for call in self._used.values())
        self._used = {shard: self._used[shard] for shard in newest[: max(self.capacity, current)]}
        self._names = {shard: name for shard, name in self._names.items() if shard in self._used}
        kept = np.array(sorted(self._names), dtype=np.int64)
        sizes = self.shards.rows[kept]
        rows = np.concatenate([np.arange(0), *map(np.arange, self._firsts[kept], self._firsts[kept] + sizes)])
        self._texts = {name: [column[row] for row in rows.tolist()] for name, column in self._texts.items()}
        self._numbers = {name: column[rows] for name, column in self._numbers.items()}
        self._firsts[kept] = np.cumsum(sizes) - sizes


def _filled(column: pa.ChunkedArray) -> Numbers:
    filled: Numbers = column.fill_null(ABSENT).to_numpy()
    return filled
