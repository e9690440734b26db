"""Videos whose bytes an earlier video has: found by partitions of their digests, each small enough for memory.

In:  planned parts of a generation, and the clips of earlier ones.
Out: for each copy, the number of its video, the first source with the same bytes and how many copies came before it.

Each block of parts is scattered on disk by the first bits of the digests; then each partition is sorted by digest and by place in
the corpus, where the first of equal ones keeps its content. The outcome does not depend on the number of partitions.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.books.parts import Numbers, read_part, read_table, write_table
from pipeline.shards.layout import CLIPS, open_table

PARTITION_ROWS = 1 << 20
"""Videos in a partition, about."""
_NEW = 1 << 62
"""Place in the corpus from which the videos of this generation are counted; those of earlier ones come before."""
_DIGEST = 32
"""Digits of a digest."""
_RANGES = b"ranges"
COPIES = pa.schema([("video", pa.int64()), ("first", pa.string()), ("before", pa.int64())])
"""A row per copy, sorted by video: its number in the generation, the first source with its bytes, how many copies came before."""


def partitions(videos: int) -> int:
    """Return the number of partitions for so many videos: a power of two."""
    return 1 << max(0, (max(1, videos) - 1).bit_length() - (PARTITION_ROWS.bit_length() - 1))


def scatter_videos(paths: Sequence[Path], first: int, out: Path, count: int) -> None:
    """Scatter the videos of some parts; `first` is the number of the first video. The captions and clips are not read."""
    tables = [read_part(path).select(["source", "digest"]) for path in paths]
    table = pa.concat_tables(tables).combine_chunks()
    places = np.arange(table.num_rows, dtype=np.int64) + first + _NEW
    _scatter(table["source"], table["digest"], places, out, count)


def scatter_clips(folder: Path, number: int, out: Path, count: int) -> None:
    """Scatter the videos of file `number` of the table of clips: one row per group and video, sorted."""
    books = open_table(folder, CLIPS)
    assert books is not None
    table = books.file(number).read(columns=["group", "source", "source_digest"])
    table = table.group_by(["group", "source", "source_digest"]).aggregate([])
    table = table.sort_by([(name, "ascending") for name in ("group", "source", "source_digest")])
    places = np.arange(table.num_rows, dtype=np.int64) + (number << 32)
    _scatter(table["source"], table["source_digest"], places, out, count)


def _scatter(sources: pa.ChunkedArray, digests: pa.ChunkedArray, places: Numbers, out: Path, count: int) -> None:
    readable = pc.equal(pc.binary_length(digests), _DIGEST).to_numpy()
    at = np.flatnonzero(readable)
    high, low = _halves(digests.take(pa.array(at)))
    which = (high >> np.uint64(64 - (count.bit_length() - 1))).astype(np.int64) if count > 1 else np.zeros(len(at), np.int64)
    order = np.argsort(which, kind="stable")
    ends = np.cumsum(np.bincount(which, minlength=count))
    cells = {
        "high": high[order],
        "low": low[order],
        "place": places[at][order],
        "source": sources.take(pa.array(at[order])).combine_chunks(),
    }
    table = pa.table(cells).replace_schema_metadata({_RANGES: json.dumps(ends.tolist()).encode()})
    write_table(out, table)


def _halves(digests: pa.ChunkedArray) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.uint64]]:
    """Return the numbers of the first and the last 16 digits of digests of 32 hexadecimal digits."""
    text = pc.ascii_lower(digests).combine_chunks()
    if not len(text):
        return np.empty(0, np.uint64), np.empty(0, np.uint64)
    begin = text.offset
    offsets = np.frombuffer(text.buffers()[1], np.int32)[begin : begin + len(text) + 1]
    letters = np.frombuffer(text.buffers()[2], np.uint8)[offsets[0] : offsets[-1]].reshape(-1, _DIGEST)
    digits = np.where(letters >= ord("a"), letters - (ord("a") - 10), letters - ord("0")).astype(np.uint8)
    packed = np.ascontiguousarray((digits[:, ::2] << 4) | digits[:, 1::2]).view(">u8")
    return packed[:, 0].astype(np.uint64), packed[:, 1].astype(np.uint64)


def find(partition: int, spills: Sequence[Path], out: Path) -> int:
    """Find the copies of this generation in one partition of all spills. Returns their number."""
    slices = []
    for path in spills:
        table = read_table(path)
        ends = json.loads(table.schema.metadata[_RANGES])
        begin = ends[partition - 1] if partition else 0
        slices.append(table.slice(begin, ends[partition] - begin).replace_schema_metadata(None))
    table = pa.concat_tables(slices)
    high, low, places = (table[name].to_numpy() for name in ("high", "low", "place"))
    order = np.lexsort((places, low, high))
    high, low = high[order], low[order]
    same = np.zeros(len(order), bool)
    same[1:] = (high[1:] == high[:-1]) & (low[1:] == low[:-1])
    # Only runs of equal digests are looked at further: there are few.
    inside = same | np.append(same[1:], False)
    rows, same = order[inside], same[inside]
    starts = np.flatnonzero(~same)
    run = np.cumsum(~same) - 1
    sources = table["source"].take(pa.array(rows))
    first = sources.take(pa.array(starts[run] if len(run) else run))
    other = pc.not_equal(sources, first).to_numpy().astype(np.int64)
    so_far = np.cumsum(other)
    before = so_far - other - (so_far[starts] - other[starts])[run] if len(run) else so_far
    numbers = places[rows] - _NEW
    kept = np.flatnonzero((other > 0) & (numbers >= 0))
    kept = kept[np.argsort(numbers[kept])]
    cells = {"video": numbers[kept], "first": first.take(pa.array(kept)).combine_chunks(), "before": before[kept] + 1}
    write_table(out, pa.table(cells, schema=COPIES))
    return len(kept)


def copies_of(found: Sequence[Path], begin: int, end: int) -> pa.Table:
    """Return the copies among videos begin to end, sorted by video. COPIES."""
    slices = []
    for path in found:
        table = read_table(path)
        low, high = np.searchsorted(table["video"].to_numpy(), [begin, end])
        slices.append(table.slice(low, high - low))
    return pa.concat_tables(slices).sort_by("video").combine_chunks() if slices else COPIES.empty_table()
