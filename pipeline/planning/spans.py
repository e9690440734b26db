"""DOC from pipeline/planning/planner.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pipeline.records import Bucket
from pipeline.video import EPSILON

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Span:
    """A stretch of a shot: every bucket listed makes a clip that begins at `begin`."""

    begin: float
    end: float
    """Time just after the last frame of the longest clip."""
    buckets: tuple[Bucket, ...]


def spans(begin: float, end: float, buckets: Sequence[Bucket], fps: float, stride: float) -> list[Span]:
    """Lay clips into a shot [begin, end), in seconds.

    The longest bucket whose last frame still lies in the shot sets the grid; every bucket no longer than that makes a
    clip at each of its points, so that one decode serves them all. Frame k of a clip is at begin + k / fps.
    """
    fitting = [bucket for bucket in buckets if (bucket.frames - 1) / fps < end - begin - EPSILON]
    if not fitting:
        return []
    longest = max(bucket.frames for bucket in fitting)
    step = longest / fps * stride
    count = 1 + math.floor(max(0.0, end - begin - EPSILON - (longest - 1) / fps) / step)
    found = []
    for number in range(count):
        at = round(begin + number * step, 6)
        if at + (longest - 1) / fps < end - EPSILON:
            found.append(Span(at, round(at + longest / fps, 6), tuple(fitting)))
    return found


def suited(buckets: Sequence[Bucket], width: int, height: int, rule: str) -> tuple[Bucket, ...]:
    """Return the buckets that a video of this shape fills: all, or those nearest in aspect ratio."""
    if rule == "all":
        return tuple(buckets)
    off = [abs(math.log((bucket.width / bucket.height) / (width / height))) for bucket in buckets]
    return tuple(bucket for bucket, distance in zip(buckets, off) if distance <= min(off) + EPSILON)
