"""The merge as one loop over videos in memory: what pipeline.books.merge must give, whoever runs its tasks."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby

import numpy as np

from pipeline.analysis.fingerprint import RATE, SIDE, Fingerprint
from pipeline.books.near_index import CONTEXT, NearIndex
from pipeline.config import PipelineConfig
from pipeline.records import Clip, Reject, VideoPlan, clip_key


class Books:
    """Groups of clips and rejects, over generations."""

    def __init__(self, config: PipelineConfig) -> None:
        self.config = config
        self.groups: list[list[Clip]] = []
        self.rejects: list[Reject] = []
        self._prints: list[tuple[str, bytes]] = []

    def merge(self, plans: Sequence[VideoPlan], again: Sequence[Clip] = ()) -> None:
        """Append a generation."""
        names = {plan.source for plan in plans}
        first: dict[str, str] = {}
        copies: dict[str, int] = {}
        for group in self.groups:
            for source, digest in sorted({(clip.source, clip.source_digest) for clip in group}):
                _add(first, copies, digest, source)
        self.rejects = [reject for reject in self.rejects if reject.source not in names]
        self._prints = [(source, one) for source, one in self._prints if source not in names]
        near = NearIndex()
        for source, one in self._prints:
            near.add(source, _unpacked(one))
        clips: list[Clip] = []
        for plan in plans:
            kept = self._without_near(near, self._without_exact(plan, first, copies))
            clips += kept.clips
            self.rejects += kept.rejects
        self._cut([*clips, *(replace(clip, shard="") for clip in again)])

    def _without_exact(self, plan: VideoPlan, first: dict[str, str], copies: dict[str, int]) -> VideoPlan:
        if not plan.digest:
            return plan
        same, count = _add(first, copies, plan.digest, plan.source)
        if not same:
            return plan
        if self.config.dedup:
            reject = Reject(plan.source, "dedup", "exact_copy", f"same bytes as {same}")
            return VideoPlan(plan.source, plan.digest, (), (reject,))
        clips = tuple(replace(c, key=clip_key(c.source_digest, c.begin, c.fps, c.bucket, count)) for c in plan.clips)
        return replace(plan, clips=clips)

    def _without_near(self, near: NearIndex, plan: VideoPlan) -> VideoPlan:
        if not self.config.near_dedup or not plan.clips:
            return plan
        fingerprints = [_unpacked(one) for one in plan.fingerprints]
        clips: list[Clip] = []
        rejects = list(plan.rejects)
        for begin, own in groupby(plan.clips, key=lambda clip: clip.begin):
            span = list(own)
            end = max(clip.end for clip in span)
            low, high = math.ceil(begin * RATE - 1e-6), math.ceil(end * RATE - 1e-6)
            high = min(len(fingerprints[0]), max(high, low + CONTEXT))
            low = max(0, min(low, high - CONTEXT))
            source, score = max((near.find(one[low:high]) for one in fingerprints), key=lambda found: found[1])
            if score >= self.config.near_dedup:
                scores = {**span[0].scores, "agreement": round(score, 4)}
                rejects.append(Reject(plan.source, "dedup", "near_copy", f"shows what {source} shows", begin, end, scores))
            else:
                clips += span
        if clips:
            for one in plan.fingerprints:
                self._prints.append((plan.source, one))
                near.add(plan.source, _unpacked(one))
        return replace(plan, clips=tuple(clips), rejects=tuple(rejects))

    def _cut(self, clips: Sequence[Clip]) -> None:
        spans = [list(span) for _, span in groupby(clips, key=lambda clip: (clip.source, clip.begin))]
        for at in range(0, len(spans), self.config.clips_per_shard):
            number = len(self.groups)
            group = [clip for span in spans[at : at + self.config.clips_per_shard] for clip in span]
            self.groups.append([replace(clip, shard=f"{clip.bucket.name}/shard-{number:06d}") for clip in group])

    def keys(self) -> Iterator[str]:
        """Yield the keys of all clips."""
        return (clip.key for group in self.groups for clip in group)


def _add(first: dict[str, str], copies: dict[str, int], digest: str, source: str) -> tuple[str, int]:
    found = first.setdefault(digest, source)
    if found == source:
        return "", 0
    copies[digest] = copies.get(digest, 0) + 1
    return found, copies[digest]


def _unpacked(packed: bytes) -> Fingerprint:
    return np.frombuffer(zlib.decompress(packed), np.uint8).reshape(-1, SIDE * SIDE)
