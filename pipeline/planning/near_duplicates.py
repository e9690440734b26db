"""Exact and near copies among planned videos: what is refused, and what is remembered for videos that come later.

In:  `VideoPlan`s in the order of the corpus.
Out: the plans less what shows nothing new, each refusal recorded.
Called by: pipeline.manifest.
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

from pipeline.corpus.content_digest import Seen
from pipeline.shards.layout import committing
from pipeline.planning.near_index import CONTEXT, RATE, SIDE, NearIndex, Print
from pipeline.planning.planner import clip_key
from pipeline.records import Clip, Reject, VideoPlan


def without_copies(plan: VideoPlan, seen: Seen, refuse: bool) -> VideoPlan:
    """Refuse a video whose bytes were seen before, or give its clips keys of their own (`refuse` false)."""
    if not plan.digest:
        return plan
    first, copies = seen.meet(plan.digest, plan.source)
    if not first:
        return plan
    if refuse:
        return VideoPlan(plan.source, plan.digest, (), (Reject(plan.source, "dedup", "exact_copy", f"same bytes as {first}"),))
    clips = tuple(replace(c, key=clip_key(c.source_digest, c.begin, c.fps, c.bucket, copies)) for c in plan.clips)
    return replace(plan, clips=clips)


class NearCopies:
    """Refuses spans that show what an earlier video shows. Prints are kept in the folder for later generations."""

    def __init__(self, path: Path, names: set[str], threshold: float) -> None:
        self._path, self._threshold = path, threshold
        self._index = NearIndex()
        self._kept: list[dict[str, Any]] = []
        if threshold and path.exists():
            for row in pq.read_table(path).to_pylist():
                if row["source"] not in names:
                    self._keep(row["source"], row["grey"])

    def _keep(self, source: str, grey: bytes) -> None:
        self._kept.append({"source": source, "grey": grey})
        self._index.add(source, _unpacked(grey))

    def without(self, plan: VideoPlan) -> VideoPlan:
        """Return the plan without the spans that an earlier video shows."""
        if not self._threshold or not plan.clips:
            return plan
        prints = [_unpacked(one) for one in plan.prints]
        clips: list[Clip] = []
        rejects = list(plan.rejects)
        for begin, own in groupby(plan.clips, key=lambda clip: clip.begin):
            span = list(own)
            end = max(clip.end for clip in span)
            first, last = math.ceil(begin * RATE - 1e-6), math.ceil(end * RATE - 1e-6)
            # A short span says too little; what follows it (or, at the end, what comes before) helps.
            last = min(len(prints[0]), max(last, first + CONTEXT))
            first = max(0, min(first, last - CONTEXT))
            # A copy that was given bars, or lost them, agrees in what is between them.
            source, score = max((self._index.find(one[first:last]) for one in prints), key=lambda found: found[1])
            if score >= self._threshold:
                scores = {**span[0].scores, "agreement": round(score, 4)}
                rejects.append(Reject(plan.source, "dedup", "near_copy", f"shows what {source} shows", begin, end, scores))
            else:
                clips += span
        if clips:
            for one in plan.prints:
                self._keep(plan.source, one)
        return replace(plan, clips=tuple(clips), rejects=tuple(rejects))

    def save(self) -> None:
        """Keep the prints for later generations."""
        if self._threshold:
            schema = pa.schema([("source", pa.string()), ("grey", pa.binary())])
            with committing(self._path) as temporary:
                pq.write_table(pa.Table.from_pylist(self._kept, schema=schema), temporary)


def _unpacked(grey: bytes) -> Print:
    return np.frombuffer(zlib.decompress(grey), np.uint8).reshape(-1, SIDE * SIDE)
