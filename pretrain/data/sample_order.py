"""Which samples make the global batch of step s: a pure function of (seed, index, curriculum, s).

In:  the number of rows of every shard, per stream and source; nothing else of the data.
Out: `Order.draw(step)`: a source, a row number and a seed for each slot of the global batch, as arrays.

The state of data loading is therefore one integer, the number of finished steps.

An epoch of a source visits each row once. Shards are shuffled, and rows are shuffled among `window` neighbouring shards of that
shuffled list. Reading thus stays within `window` shards at a time and opens each shard in one window per epoch, which suits local
disks and object stores alike (a local cache of `window` + 1 shards is enough). Several weighted datasets have an epoch each, and
samples alternate between them in exact shares.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from itertools import accumulate
from typing import Any

import numpy as np
import numpy.typing as npt

from pretrain.data.curriculum import Curriculum, CurriculumStep, StreamName, share

Numbers = npt.NDArray[np.int64]
_WORD = (1 << 64) - 1


@dataclass(frozen=True)
class SampleSource:
    """Rows that share one epoch: all datasets joined, or one of several weighted datasets. Rows are numbered in shard order."""

    number: int
    """Its number among the sources of the stream."""
    shards: tuple[int, ...]
    """Rows of each shard."""
    weight: float = 1.0
    """Relative share of the stream's samples."""

    @cached_property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.shards)


@dataclass(frozen=True)
class Slot:
    """One sample of a global batch."""

    source: int
    row: int
    """Row number within the source."""
    epoch: int
    """How often all of the source was visited before."""


@dataclass(frozen=True)
class Draw:
    """All samples of a global batch, in slot order."""

    sources: Numbers
    rows: Numbers
    """Row numbers within their sources."""
    epochs: Numbers
    seeds: Numbers
    """The seed of all random draws of each sample."""

    @classmethod
    def joined(cls, draws: Sequence[Draw]) -> Draw:
        """Return the samples of several batches of one stream, one batch after the other."""
        if len(draws) == 1:
            return draws[0]
        columns = [[draw.sources, draw.rows, draw.epochs, draw.seeds] for draw in draws]
        return cls(*map(np.concatenate, zip(*columns, strict=True)))

    def slot(self, number: int) -> Slot:
        """Return one of the samples."""
        return Slot(int(self.sources[number]), int(self.rows[number]), int(self.epochs[number]))


class Epochs:
    """The endless order of one source: sample number -> (row, epoch)."""

    def __init__(self, seed: int, name: str, source: SampleSource, window: int) -> None:
        assert source.rows > 0 and window > 0
        self.source, self.window = source, window
        self._seed = (seed, *name.encode(), source.number)
        self._firsts = (0, *accumulate(source.shards))
        self._shards = lru_cache(maxsize=2)(self._shuffled_shards)
        self._rows = lru_cache(maxsize=4)(self._shuffled_rows)

    def at(self, number: int) -> tuple[int, int]:
        """Return (row, epoch) of sample `number`, counted from 0."""
        rows, epochs = self.span(number, 1)
        return int(rows[0]), int(epochs[0])

    def span(self, first: int, count: int) -> tuple[Numbers, Numbers]:
        """Return (rows, epochs) of `count` consecutive samples."""
        rows, epochs = [], []
        while count:
            epoch, position = divmod(first, self.source.rows)
            _, ends = self._shards(epoch)
            window = bisect_right(ends, position)
            begin = ends[window - 1] if window else 0
            part = self._rows(epoch, window)[position - begin : position - begin + count]
            rows.append(part)
            epochs.append(np.full(len(part), epoch, dtype=np.int64))
            first, count = first + len(part), count - len(part)
        return (rows[0], epochs[0]) if len(rows) == 1 else (np.concatenate(rows), np.concatenate(epochs))

    def _shuffled_shards(self, epoch: int) -> tuple[npt.NDArray[np.int64], list[int]]:
        """Return the epoch's shard order, and the positions at which its windows end."""
        order = np.random.default_rng((*self._seed, epoch, 0)).permutation(len(self.source.shards))
        sizes = np.asarray(self.source.shards, dtype=np.int64)[order]
        ends = [int(sizes[i : i + self.window].sum()) for i in range(0, len(order), self.window)]
        return order, list(accumulate(ends))

    def _shuffled_rows(self, epoch: int, window: int) -> npt.NDArray[np.int64]:
        """Return the rows of one window of shards, in the order in which they are read."""
        order, _ = self._shards(epoch)
        shards = order[window * self.window : (window + 1) * self.window]
        rows = np.concatenate([np.arange(self._firsts[s], self._firsts[s + 1], dtype=np.int64) for s in shards])
        return np.random.default_rng((*self._seed, epoch, 1, window)).permutation(rows)


class Order:
    """The order of a whole run. streams: a non-empty list of sources for every stream of the curriculum."""

    def __init__(
        self, seed: int, curriculum: Curriculum, streams: Mapping[StreamName, Sequence[SampleSource]], window: int
    ) -> None:
        self.seed, self.curriculum, self.window = seed, curriculum, window
        self._weights = {name: tuple(source.weight for source in sources) for name, sources in streams.items()}
        self._epochs = {
            name: tuple(Epochs(seed, f"{name[0]}:{name[1]}", source, window) for source in sources)
            for name, sources in streams.items()
        }

    def slots(self, step: int) -> tuple[Slot, ...]:
        """Return the global batch of `step`, in slot order."""
        drawn = self.draw(self.curriculum.at(step))
        return tuple(map(drawn.slot, range(len(drawn.rows))))

    def draw(self, at: CurriculumStep) -> Draw:
        """Return the global batch of a step."""
        count, epochs = at.mix.batch, self._epochs[at.stream]
        seeds = sample_seeds(self.seed, at.step, count)
        if len(epochs) == 1:
            rows, visits = epochs[0].span(at.first_sample, count)
            return Draw(np.full(count, epochs[0].source.number), rows, visits, seeds)
        # Consecutive samples of the stream that fall to one source are consecutive samples of that source.
        shares = [share(self._weights[at.stream], at.first_sample + slot) for slot in range(count)]
        chosen = np.array([choice for choice, _ in shares])
        sources, rows, visits = np.empty((3, count), dtype=np.int64)
        for choice in sorted({choice for choice, _ in shares}):
            mine = np.flatnonzero(chosen == choice)
            before = shares[mine[0]][1][choice]
            rows[mine], visits[mine] = epochs[choice].span(before, len(mine))
            sources[mine] = epochs[choice].source.number
        return Draw(sources, rows, visits, seeds)


def sample_seeds(seed: int, step: int, count: int) -> Numbers:
    """Return the seed of all random draws of each sample of a step, 0 <= seed < 2**63. It does not depend on the number of ranks."""
    mixed: npt.NDArray[np.uint64] = _mix(_mix(_mix(seed) ^ step) ^ np.arange(count, dtype=np.uint64))
    return (mixed >> 1).astype(np.int64)


def _mix(value: Any) -> Any:
    """One step of SplitMix64: a bijection in which every input bit affects every output bit. An int, or an array of uint64."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)
