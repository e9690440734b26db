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

from cluster.runtime.atomic_files import committing
from pipeline.analysis.fingerprint import RATE, SIDE, Print
from pipeline.planning.near_index import CONTEXT, NearIndex
from pipeline.records import Clip, Reject, VideoPlan


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
