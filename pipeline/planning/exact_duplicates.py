"""DOC from pipeline/planning/near_duplicates.py."""

from __future__ import annotations

from dataclasses import replace

from pipeline.records import Reject, VideoPlan, clip_key


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


class Seen:
    """Digests met so far: the first video with a digest keeps it. 16 bytes of key a video."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}
        self._copies: dict[bytes, int] = {}

    def meet(self, digest: str, source: str) -> tuple[str, int]:
        """Note a video. Returns (the earlier source that holds the same bytes, or empty; how many came before)."""
        key = bytes.fromhex(digest)
        first = self._first.setdefault(key, source)
        if first == source:
            return "", 0
        count = self._copies.get(key, 0) + 1
        self._copies[key] = count
        return first, count
