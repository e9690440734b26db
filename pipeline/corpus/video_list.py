"""The videos of a corpus, streamed through a file: memory takes some 70 bytes per video, however long names and captions are.

In:  videos as listing.py yields them, with repeated names among them.
Out: `VideoList`: the same videos without repetitions, in order, as often as they are asked for; how many names were repeated.

A name is known by its xxh3-128. Of repeated names the first counts.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import xxhash

from cluster.runtime.progress import ProgressBar
from pipeline.records import SourceVideo
from pipeline.shards.generation import rows_of, videos_of
from pipeline.shards.schemas import VIDEOS

CHUNK = 1 << 14
"""Videos in memory at a time."""
Hashes = npt.NDArray[np.uint64]


class Sources:
    """A set of names, each as two numbers of 64 bits, sorted."""

    def __init__(self, names: Iterable[str] = ()) -> None:
        self.pairs = hashes(names)
        self.pairs = self.pairs[ordered(self.pairs)]

    def hold(self, pairs: Hashes) -> npt.NDArray[np.bool_]:
        """Return which of some hashes are in the set."""
        return self.find(pairs) >= 0

    def find(self, pairs: Hashes) -> npt.NDArray[np.int64]:
        """Return the place of each of some hashes in the set, -1 for one that is not there."""
        found = np.full(len(pairs), -1, np.int64)
        if len(self.pairs):
            low = np.searchsorted(self.pairs[:, 0], pairs[:, 0])
            # Names with equal first numbers are neighbours, and there is hardly ever more than one.
            while (open_ := (low < len(self.pairs)) & (found < 0)).any():
                at = np.minimum(low, len(self.pairs) - 1)
                near = open_ & (self.pairs[at, 0] == pairs[:, 0])
                same = near & (self.pairs[at, 1] == pairs[:, 1])
                found[same] = at[same]
                if not near.any():
                    break
                low = low + 1
        return found


def ordered(pairs: Hashes) -> npt.NDArray[np.int64]:
    """Return the numbers of some hashes in sorted order; of equal ones the first comes first."""
    return np.lexsort((pairs[:, 1], pairs[:, 0]))


def hashes(names: Iterable[str]) -> Hashes:
    """Return the xxh3-128 of each name as two numbers, (names, 2)."""
    found = array("Q")
    for name in names:
        whole = xxhash.xxh3_128_intdigest(name.encode("utf-8", "surrogatepass"))
        found.append(whole >> 64)
        found.append(whole & 0xFFFFFFFFFFFFFFFF)
    return np.frombuffer(found, np.uint64).reshape(-1, 2) if len(found) else np.empty((0, 2), np.uint64)


class VideoList:
    """Videos in a file, which is removed when the context ends."""

    def __init__(self, videos: Iterable[SourceVideo], path: Path) -> None:
        self._path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        pairs, held = [np.empty((0, 2), np.uint64)], iter(videos)
        with (
            pa.OSFile(str(path), "wb") as out,
            pa.ipc.new_file(out, VIDEOS, options=_OPTIONS) as writer,
            _progress() as progress,
        ):
            while chunk := list(islice(held, CHUNK)):
                pairs.append(hashes(video.source for video in chunk))
                writer.write_table(rows_of([(video, 0) for video in chunk]), max_chunksize=CHUNK)
                progress.update(len(chunk), note="names")
        self.pairs: Hashes = np.concatenate(pairs)
        """Hash of each name, repeated ones included."""
        order = np.lexsort((self.pairs[:, 1], self.pairs[:, 0]))
        same = np.zeros(len(order), bool)
        ordered = self.pairs[order]
        same[1:] = (ordered[1:] == ordered[:-1]).all(axis=1)
        self._repeated = np.zeros(len(order), bool)
        # Equal hashes are in the order of the corpus.
        self._repeated[order[same]] = True
        self.repeated = int(self._repeated.sum())
        """Names that came before."""

    def __len__(self) -> int:
        return len(self.pairs) - self.repeated

    def count(self, kept: npt.NDArray[np.bool_]) -> int:
        """Return how many of some numbers are videos, not repeated names."""
        return int((~self._repeated & kept).sum())

    def __iter__(self) -> Iterator[SourceVideo]:
        return (video for video, _ in self.hashed())

    def hashed(self, kept: npt.NDArray[np.bool_] | None = None) -> Iterator[tuple[SourceVideo, int]]:
        """Yield the videos with their number among all, repeated ones included; kept: only these numbers."""
        return self._numbered(~self._repeated if kept is None else ~self._repeated & kept)

    def _numbered(self, wanted: npt.NDArray[np.bool_]) -> Iterator[tuple[SourceVideo, int]]:
        with pa.memory_map(str(self._path)) as source:
            file = pa.ipc.open_file(source)
            for number in range(file.num_record_batches):
                mine = wanted[number * CHUNK : (number + 1) * CHUNK]
                places = (number * CHUNK + np.flatnonzero(mine)).tolist()
                yield from zip(videos_of(file.get_batch(number).filter(pa.array(mine))), places, strict=True)

    def repeats(self) -> Iterator[tuple[SourceVideo, SourceVideo]]:
        """Yield each video whose name came before, with the first of that name."""
        if not self.repeated:
            return
        names = Sources()
        names.pairs = np.unique(self.pairs[self._repeated], axis=0)
        both = names.hold(self.pairs)
        first: dict[str, SourceVideo] = {}
        for video, _ in self._numbered(both):
            if (found := first.setdefault(video.source, video)) is not video:
                yield video, found

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._path.unlink(missing_ok=True)


_OPTIONS = pa.ipc.IpcWriteOptions(compression="zstd")


def _progress() -> ProgressBar:
    return ProgressBar("corpus", 0, every=10.0)
