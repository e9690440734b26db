"""Which samples make the global batch of step s: a pure function of (seed, index, curriculum, s).

In:  the number of rows of every shard, per stream and source; nothing else of the data.
Out: `Order.slots(step)`: a source and a row number for each slot of the global batch; `Order.seeds(step)`: the seed of each slot.

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
from functools import lru_cache
from itertools import accumulate

import numpy as np
import numpy.typing as npt

from pretrain.data.curriculum import Curriculum, StreamName, share

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

    @property
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
        epoch, position = divmod(number, self.source.rows)
        _, ends = self._shards(epoch)
        window = bisect_right(ends, position)
        begin = ends[window - 1] if window else 0
        return int(self._rows(epoch, window)[position - begin]), epoch

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
        self.seed, self.curriculum = seed, curriculum
        self._weights = {name: tuple(source.weight for source in sources) for name, sources in streams.items()}
        self._epochs = {
            name: tuple(Epochs(seed, f"{name[0]}:{name[1]}", source, window) for source in sources)
            for name, sources in streams.items()
        }

    def slots(self, step: int) -> tuple[Slot, ...]:
        """Return the global batch of `step`, in slot order."""
        at = self.curriculum.at(step)
        return tuple(self._slot(at.stream, at.first_sample + slot) for slot in range(at.mix.batch))

    def _slot(self, stream: StreamName, number: int) -> Slot:
        epochs = self._epochs[stream]
        chosen = 0
        if len(epochs) > 1:
            chosen, before = share(self._weights[stream], number)
            number = before[chosen]
        row, epoch = epochs[chosen].at(number)
        return Slot(source=epochs[chosen].source.number, row=row, epoch=epoch)

    def seeds(self, step: int) -> list[int]:
        """Return the seed of each slot of `step`."""
        batch = self.curriculum.at(step).mix.batch
        return [sample_seed(self.seed, step, slot) for slot in range(batch)]


def sample_seed(seed: int, step: int, slot: int) -> int:
    """Return the seed of all random draws of one sample, 0 <= seed < 2**63. It does not depend on the number of ranks."""
    return _mix(_mix(_mix(seed) ^ step) ^ slot) >> 1


def _mix(value: int) -> int:
    """One step of SplitMix64: a bijection in which every input bit affects every output bit."""
    value = (value + 0x9E3779B97F4A7C15) & _WORD
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _WORD
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _WORD
    return value ^ (value >> 31)
