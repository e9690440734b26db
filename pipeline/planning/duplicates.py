"""Duplicates among planned videos: files with equal bytes, and spans that show what an earlier video shows.

In:  `VideoPlan`s in the order of the corpus.
Out: the plans without what is a duplicate, each refusal recorded.
"""

from __future__ import annotations

import math
import zlib
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import committing
from pipeline.analysis.fingerprint import RATE, SIDE, Fingerprint
from pipeline.planning.near_index import CONTEXT, NearIndex
from pipeline.records import Clip, Reject, VideoPlan, clip_key


class ContentIndex:
    """Content digests seen so far; the first video with a digest keeps it. The key takes 16 bytes per video."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}
        self._copies: dict[bytes, int] = {}

    def add(self, digest: str, source: str) -> tuple[str, int]:
        """Record a video. Returns the earlier source with the same bytes (empty for none) and how many copies came before."""
        key = bytes.fromhex(digest)
        first = self._first.setdefault(key, source)
        if first == source:
            return "", 0
        count = self._copies.get(key, 0) + 1
        self._copies[key] = count
        return first, count


def without_exact_copies(plan: VideoPlan, index: ContentIndex, refuse: bool) -> VideoPlan:
    """Refuse a video whose bytes were seen before; with `refuse` false, give its clips keys of their own instead."""
    if not plan.digest:
        return plan
    first, copies = index.add(plan.digest, plan.source)
    if not first:
        return plan
    if refuse:
        return VideoPlan(plan.source, plan.digest, (), (Reject(plan.source, "dedup", "exact_copy", f"same bytes as {first}"),))
    clips = tuple(replace(c, key=clip_key(c.source_digest, c.begin, c.fps, c.bucket, copies)) for c in plan.clips)
    return replace(plan, clips=clips)


class NearDuplicates:
    """Refuses spans that show what an earlier video shows. Fingerprints are kept in a file for later generations.

    path: that file. sources: the videos of this generation, whose old fingerprints are dropped. threshold: agreement from which
    a span is refused; 0 turns the search off.
    """

    def __init__(self, path: Path, sources: set[str], threshold: float) -> None:
        self._path, self._threshold = path, threshold
        self._index = NearIndex()
        self._kept: list[dict[str, Any]] = []
        if threshold and path.exists():
            for row in pq.read_table(path).to_pylist():
                if row["source"] not in sources:
                    self._keep(row["source"], row["grey"])

    def _keep(self, source: str, packed: bytes) -> None:
        self._kept.append({"source": source, "grey": packed})
        self._index.add(source, _unpacked(packed))

    def without(self, plan: VideoPlan) -> VideoPlan:
        """Return the plan without the spans that an earlier video shows."""
        if not self._threshold or not plan.clips:
            return plan
        fingerprints = [_unpacked(one) for one in plan.fingerprints]
        clips: list[Clip] = []
        rejects = list(plan.rejects)
        for begin, own in groupby(plan.clips, key=lambda clip: clip.begin):
            span = list(own)
            end = max(clip.end for clip in span)
            first, last = math.ceil(begin * RATE - 1e-6), math.ceil(end * RATE - 1e-6)
            # A short span is too little to compare: take in what follows it or, at the end of the video, what precedes it.
            last = min(len(fingerprints[0]), max(last, first + CONTEXT))
            first = max(0, min(first, last - CONTEXT))
            # A copy that gained or lost black bars agrees in the picture between them.
            source, score = max((self._index.find(one[first:last]) for one in fingerprints), key=lambda found: found[1])
            if score >= self._threshold:
                scores = {**span[0].scores, "agreement": round(score, 4)}
                rejects.append(Reject(plan.source, "dedup", "near_copy", f"shows what {source} shows", begin, end, scores))
            else:
                clips += span
        if clips:
            for one in plan.fingerprints:
                self._keep(plan.source, one)
        return replace(plan, clips=tuple(clips), rejects=tuple(rejects))

    def save(self) -> None:
        """Write the fingerprints for later generations."""
        if self._threshold:
            schema = pa.schema([("source", pa.string()), ("grey", pa.binary())])
            with committing(self._path) as temporary:
                pq.write_table(pa.Table.from_pylist(self._kept, schema=schema), temporary)


def _unpacked(packed: bytes) -> Fingerprint:
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(-1, SIDE * SIDE)
