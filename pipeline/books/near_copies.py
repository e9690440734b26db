"""Spans that show what an earlier video shows.

In:  planned parts of a generation without its exact copies, fingerprints of earlier generations.
Out: the refused spans, each with the source that shows the same and how well the two agree.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from pipeline.analysis.fingerprint import RATE, SIDE, Fingerprint
from pipeline.books.exact_copies import copies_of
from pipeline.books.near_index import CONTEXT, NearIndex
from pipeline.books.parts import read_part, write_table
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


class NearDuplicates:
    """Videos so far. threshold: agreement from which a span is refused."""

    def __init__(self, threshold: float) -> None:
        self._threshold, self._index = threshold, NearIndex()

    def add(self, source: str, packed: Sequence[bytes]) -> None:
        """Take in a video that has clips."""
        for one in packed:
            self._index.add(source, unpacked(one))

    def refused(self, spans: Sequence[tuple[float, float]], packed: Sequence[bytes]) -> list[tuple[float, float, str, float]]:
        """Return the spans (begin, end) that an earlier video shows, with its source and the agreement."""
        fingerprints = [unpacked(one) for one in packed]
        found: list[tuple[float, float, str, float]] = []
        if not fingerprints:
            return found
        for begin, end in spans:
            first, last = math.ceil(begin * RATE - 1e-6), math.ceil(end * RATE - 1e-6)
            # A short span is too little to compare: take in what follows it or, at the end of the video, what precedes it.
            last = min(len(fingerprints[0]), max(last, first + CONTEXT))
            first = max(0, min(first, last - CONTEXT))
            # A copy that gained or lost black bars agrees in the picture between them.
            source, score = max((self._index.find(one[first:last]) for one in fingerprints), key=lambda each: each[1])
            if score >= self._threshold:
                found.append((begin, end, source, score))
        return found


def find(
    folder: Path, paths: Sequence[Path], exact: Sequence[Path], again: Path, threshold: float, out: Path, drop: bool
) -> int:
    """Find the near copies of a generation. exact: what exact_copies.find found; drop: exact copies are refused.

    again: the sources that had an outcome before, whose old fingerprints do not count. Returns the number of refused spans.
    """
    near = NearDuplicates(threshold)
    renewed = set(pa.ipc.open_file(pa.memory_map(str(again))).read_all()["source"].to_pylist())
    earlier = open_table(folder, FINGERPRINTS)
    for table in () if earlier is None else earlier.tables():
        for source, grey in zip(table["source"].to_pylist(), table["grey"].to_pylist(), strict=True):
            if source not in renewed:
                near.add(source, [grey])
    rows: list[tuple[int, float, float, str, float]] = []
    number = 0
    for path in paths:
        table = read_part(path)
        gone = set(copies_of(exact, number, number + table.num_rows)["video"].to_pylist()) if drop else set()
        for row in table.select(["source", "clips", "prints"]).to_pylist():
            if number not in gone and row["clips"]:
                grouped = [list(span) for _, span in groupby(row["clips"], key=lambda clip: clip["begin"])]
                spans = [(span[0]["begin"], max(clip["end"] for clip in span)) for span in grouped]
                refused = near.refused(spans, row["prints"])
                rows += [(number, *each) for each in refused]
                if len(refused) < len(spans):
                    near.add(row["source"], row["prints"])
            number += 1
    write_table(out, pa.Table.from_pylist([dict(zip(SPANS.names, row, strict=True)) for row in rows], schema=SPANS))
    return len(rows)


def spans_of(found: Sequence[Path], begin: int, end: int) -> pa.Table:
    """Return the refused spans of videos begin to end. SPANS."""
    slices = [SPANS.empty_table()]
    for path in found:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        low, high = np.searchsorted(table["video"].to_numpy(), [begin, end])
        slices.append(table.slice(low, high - low))
    return pa.concat_tables(slices).combine_chunks()


def unpacked(packed: bytes) -> Fingerprint:
    """Return a fingerprint as it was before compression, (pictures, SIDE * SIDE)."""
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(-1, SIDE * SIDE)
