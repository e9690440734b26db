"""Spans that show what an earlier video shows: found by blocks of videos, in an index on disk that is made by ranges of its keys.

In:  planned parts of a generation without its exact copies, fingerprints of earlier generations.
Out: the refused spans, each with the source that shows the same and how well the two agree.

A video enters the index only if a span of it remains, which depends on the videos before it. So the index is first made as if all
did, and made anew without those that do not, until nothing changes: then each outcome rests on right outcomes of all videos before
it, and is that of one loop over the corpus. Copies of copies take a round more each. The index holds BUCKET positions of each of
its 4 x 65,536 keys at most, 0.8 GB; fingerprints are read from disk one by one.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.analysis.fingerprint import RATE, SIDE, Fingerprint
from pipeline.books import parts
from pipeline.books.exact_copies import copies_of
from pipeline.books.near_index import BUCKET, CONTEXT, QUERY_STEP, NearIndex, keys_of
from pipeline.books.parts import Numbers, read_table, write_table
from pipeline.shards.layout import FINGERPRINTS, open_table

SPANS = pa.schema(
    [
        ("video", pa.int64()),
        ("begin", pa.float64()),
        ("end", pa.float64()),
        ("source", pa.string()),
        ("agreement", pa.float64()),
    ]
)
"""A row per refused span, sorted by video and begin: the video's number in the generation, seconds, what shows the same."""
KEYS = 4 << 16
"""Number of keys."""
_NEW = 1 << 40
"""Number from which the fingerprints of this generation are counted, two for each video."""
PRINTS = pa.schema([("number", pa.int64()), ("source", pa.string()), ("pictures", pa.large_binary())])
POSITIONS = pa.schema([("key", pa.int32()), ("number", pa.int64()), ("picture", pa.int32())])


@dataclass(frozen=True)
class Prints:
    """Files of one block of fingerprints."""

    out: Path
    first: int
    """Least number of its fingerprints."""

    def file(self, kind: str) -> Path:
        """Return the path of one kind: prints, positions, spans."""
        return self.out.with_name(f"{self.out.name}.{kind}.arrow")


def first_number(video: int) -> int:
    """Return the number of the first fingerprint of a video of this generation."""
    return _NEW + 2 * video


def unpack_earlier(folder: Path, at: int, again: Path, block: Prints) -> None:
    """Write the fingerprints of file `at` of the table without those of sources that are planned anew."""
    books = open_table(folder, FINGERPRINTS)
    assert books is not None
    table = books.file(at).read()
    kept = pc.invert(pc.is_in(table["source"], value_set=read_table(again)["source"].combine_chunks()))
    numbers = block.first + np.flatnonzero(kept.to_numpy())
    table = table.filter(kept)
    _write(block, numbers, table["source"].to_pylist(), table["grey"].to_pylist())


def unpack(paths: Sequence[Path], first: int, exact: Sequence[Path], drop: bool, block: Prints) -> None:
    """Write the fingerprints and spans of some parts. drop: exact copies are refused."""
    table = parts.read_parts(paths)
    gone = copies_of(exact, first, first + table.num_rows)["video"].to_numpy() - first if drop else np.empty(0, np.int64)
    held = np.flatnonzero((parts.counts(table["clips"]) > 0) & ~np.isin(np.arange(table.num_rows), gone))
    packed, owners = parts.prints_of(table)
    mine = np.flatnonzero(np.isin(owners, held))
    which = mine - np.searchsorted(owners, owners[mine])
    sources = table["source"].take(pa.array(owners[mine])).to_pylist()
    _write(block, _NEW + 2 * (first + owners[mine]) + which, sources, packed.take(pa.array(mine)).to_pylist())
    spans = []
    for video, clips in zip(held.tolist(), table["clips"].take(pa.array(held)).to_pylist(), strict=True):
        for begin, own in groupby(clips, key=lambda clip: clip["begin"]):
            spans.append({"video": first + video, "begin": begin, "end": max(clip["end"] for clip in own)})
    write_table(block.file("spans"), pa.Table.from_pylist(spans, schema=pa.schema([SPANS.field(at) for at in range(3)])))


def _write(block: Prints, numbers: Numbers, sources: list[str], packed: list[bytes]) -> None:
    raw = [zlib.decompress(one) for one in packed]
    keys: list[NDArray[np.int64]] = [np.empty((0, 3), np.int64)]
    for number, one in zip(numbers.tolist(), raw, strict=True):
        pictures, found = keys_of(_pictures(one)[::QUERY_STEP])
        rows = np.empty((*found.shape, 3), np.int64)
        rows[..., 0], rows[..., 1], rows[..., 2] = found, number, QUERY_STEP * pictures[:, None]
        keys.append(rows.reshape(-1, 3))
    write_table(block.file("prints"), pa.table([pa.array(numbers), sources, pa.array(raw, pa.large_binary())], schema=PRINTS))
    write_table(block.file("positions"), _positions(np.concatenate(keys)))


def _positions(rows: NDArray[np.int64]) -> pa.Table:
    rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
    return pa.table([rows[:, 0].astype(np.int32), rows[:, 1], rows[:, 2].astype(np.int32)], schema=POSITIONS)


def make_index(at: int, ranges: int, blocks: Sequence[Prints], dropped: Path, out: Path) -> None:
    """Write range `at` of the index: the first positions of each key, without the videos that are `dropped`."""
    begin, end = at * KEYS // ranges, (at + 1) * KEYS // ranges
    gone = read_table(dropped)["video"].to_numpy()
    pieces = [np.empty((0, 3), np.int64)]
    for block in blocks:
        table = read_table(block.file("positions"))
        low, high = np.searchsorted(table["key"].to_numpy(), [begin, end])
        rows = np.stack([column.to_numpy().astype(np.int64) for column in table.slice(low, high - low).columns], axis=1)
        rows = rows[~np.isin((rows[:, 1] - _NEW) // 2, gone)]
        pieces.append(rows[_ranks(rows[:, 0]) < BUCKET])
    # The blocks are in the order of the corpus.
    joined = np.concatenate(pieces)
    joined = joined[np.argsort(joined[:, 0], kind="stable")]
    write_table(out, _positions(joined[_ranks(joined[:, 0]) < BUCKET]))


def _ranks(keys: Numbers) -> Numbers:
    """Return the place of each of some sorted keys among its equals."""
    starts = np.flatnonzero(np.diff(keys, prepend=-1))
    return np.arange(len(keys)) - np.repeat(starts, np.diff([*starts, len(keys)]))


class _StoredIndex(NearIndex):
    """The index on disk, as one video sees it."""

    def __init__(self, blocks: Sequence[Prints], index: Sequence[Path]) -> None:
        self._blocks, self._firsts = blocks, [block.first for block in blocks]
        self._index = [[column.to_numpy() for column in read_table(path).columns] for path in index]
        self._tables: dict[int, pa.Table] = {}
        self.before = 0
        """Number of the fingerprint before which all others lie."""

    def hits(self, key: int) -> NDArray[np.int64]:
        keys, numbers, pictures = self._index[min(len(self._index) - 1, (key * len(self._index)) // KEYS)]
        low, high = np.searchsorted(keys, [key, key + 1])
        high = low + np.searchsorted(numbers[low:high], self.before)
        return np.stack([numbers[low:high], pictures[low:high].astype(np.int64)], axis=1)

    def seen(self, number: int) -> tuple[str, Fingerprint]:
        at = bisect_right(self._firsts, number) - 1
        if at not in self._tables:
            self._tables[at] = read_table(self._blocks[at].file("prints"))
        table = self._tables[at]
        row = int(np.searchsorted(table["number"].to_numpy(), number))
        return table["source"][row].as_py(), _pictures(table["pictures"][row].as_buffer())


def refuse(block: Prints, blocks: Sequence[Prints], index: Sequence[Path], threshold: float, out: Path) -> list[int]:
    """Write the spans of a block that an earlier video shows. Returns the videos of which no span remains."""
    stored = _StoredIndex(blocks, index)
    spans = read_table(block.file("spans"))
    own = read_table(block.file("prints"))
    numbers, pictures = own["number"].to_numpy(), own["pictures"]
    rows: list[dict[str, object]] = []
    dropped = []
    for video, group in groupby(spans.to_pylist(), key=lambda span: span["video"]):
        asked = list(group)
        stored.before = first_number(video)
        low, high = np.searchsorted(numbers, [stored.before, stored.before + 2])
        fingerprints = [_pictures(pictures[at].as_buffer()) for at in range(low, high)]
        found = _refused(stored, asked, fingerprints, threshold) if fingerprints else []
        rows += found
        if len(found) == len(asked):
            dropped.append(video)
    write_table(out, pa.Table.from_pylist(rows, schema=SPANS))
    return dropped


def _refused(
    stored: NearIndex, spans: Sequence[dict[str, float]], fingerprints: Sequence[Fingerprint], threshold: float
) -> list[dict[str, object]]:
    found = []
    for span in spans:
        first, last = math.ceil(span["begin"] * RATE - 1e-6), math.ceil(span["end"] * RATE - 1e-6)
        # A short span is too little to compare: take in what follows it or, at the end of the video, what precedes it.
        last = min(len(fingerprints[0]), max(last, first + CONTEXT))
        first = max(0, min(first, last - CONTEXT))
        # A copy that gained or lost black bars agrees in the picture between them.
        source, score = max((stored.find(one[first:last]) for one in fingerprints), key=lambda each: each[1])
        if score >= threshold:
            found.append({**span, "source": source, "agreement": score})
    return found


def spans_of(found: Sequence[Path], begin: int, end: int) -> pa.Table:
    """Return the refused spans of videos begin to end. SPANS."""
    slices = [SPANS.empty_table()]
    for path in found:
        table = read_table(path)
        low, high = np.searchsorted(table["video"].to_numpy(), [begin, end])
        slices.append(table.slice(low, high - low))
    return pa.concat_tables(slices).combine_chunks()


def _pictures(raw: object) -> Fingerprint:
    return np.frombuffer(raw, np.uint8).reshape(-1, SIDE * SIDE)  # type: ignore[call-overload, no-any-return]
