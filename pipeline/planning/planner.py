"""From a video to its clips: by timestamps, one span for all buckets, every refusal recorded.

In:  `SourceVideo`s, the configuration, a `DecoderProcess`.
Out: `VideoPlan`s; clip keys; spans. All pure functions of the video's bytes and the configuration.
Called by: pipeline.ray_job (planning tasks).
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

from pipeline.planning import filters
from pipeline.corpus import listing
from pipeline.config import PipelineConfig
from pipeline.analysis.scan import Scan, shots
from pipeline.decoding.process import DecoderDied, DecoderProcess
from pipeline.corpus.content_digest import content_digest
from pipeline.records import Bucket, Clip, Reject, SourceVideo, VideoPlan
from pipeline.video import EPSILON, VideoError

if TYPE_CHECKING:
    from pipeline.planning.captioner import Captioner


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


def clip_key(digest: str, begin: float, fps: float, bucket: Bucket, copy: int = 0) -> str:
    """Return the sample key: 32 hex digits of xxh3-128 over content digest, begin, fps and bucket (and the copy's number)."""
    text = f"{digest}|{begin:.6f}|{fps:.6f}|{bucket.name}" + (f"|{copy}" if copy else "")
    return xxhash.xxh3_128_hexdigest(text.encode())


def clip_times(clip: Clip) -> tuple[float, ...]:
    """Seconds of each frame of a clip from the video's first frame."""
    return tuple(clip.begin + number / clip.fps for number in range(clip.bucket.frames))


def suited(buckets: Sequence[Bucket], width: int, height: int, rule: str) -> tuple[Bucket, ...]:
    """Return the buckets that a video of this shape fills: all, or those nearest in aspect ratio."""
    if rule == "all":
        return tuple(buckets)
    off = [abs(math.log((bucket.width / bucket.height) / (width / height))) for bucket in buckets]
    return tuple(bucket for bucket, distance in zip(buckets, off) if distance <= min(off) + EPSILON)


def plan_video(
    video: SourceVideo, config: PipelineConfig, decoder: DecoderProcess, captioner: Captioner | None = None
) -> VideoPlan:
    """Look at one video and plan its clips. Never raises for a bad video: that is an outcome.

    captioner: describes clips that have no caption.
    """
    digest = ""
    try:
        with listing.local(video.source) as path:
            digest = content_digest(path)
            found = _scan(path, config, decoder)
            plan = _judged(video, digest, found, config)
            if captioner is not None and plan.clips:
                from pipeline.planning.captioner import captioned

                plan = captioned(
                    plan, path, (found.height, found.width), captioner, config.captioner, decoder, config.limits.attempts
                )
            return plan
    except VideoError as error:
        return refused(video, digest, "probe", error.reason, str(error))
    except DecoderDied as error:
        detail = f"{error}; quarantined after {config.limits.attempts} attempts"
        return refused(video, digest, "probe", error.reason, detail)


def _judged(video: SourceVideo, digest: str, found: Scan, config: PipelineConfig) -> VideoPlan:
    if found.damage and config.damaged == "refuse":
        return refused(video, digest, "probe", "damaged", found.damage)
    if min(found.width, found.height) < config.filters.min_side:
        detail = f"{found.width}x{found.height} pixels; pipeline.filters.min_side is {config.filters.min_side}"
        return refused(video, digest, "filters", "too_small", detail)
    return _lay(video, digest, found, config)


def _lay(video: SourceVideo, digest: str, found: Scan, config: PipelineConfig) -> VideoPlan:
    clips: list[Clip] = []
    rejects: list[Reject] = []
    buckets = suited(config.buckets, found.width, found.height, config.aspect)
    shortest = min(bucket.frames for bucket in buckets)
    caption = listing.sidecar(video.source) or video.caption
    for begin, end in shots(found, config.cuts):
        laid = spans(begin, end, buckets, config.fps, config.clip_stride)
        if not laid:
            detail = f"a shot of {end - begin:.3f} s; {shortest} frames at {config.fps:g} a second take {shortest / config.fps:.3f} s"
            rejects.append(Reject(video.source, "plan", "too_short", detail, round(begin, 6), round(end, 6)))
        for span in laid:
            scores = filters.scores(found, span.begin, span.end)
            reason, detail = filters.refusal(scores, config.filters, max(bucket.frames for bucket in span.buckets))
            if reason:
                rejects.append(Reject(video.source, "filters", reason, detail, span.begin, span.end, scores))
                continue
            clips += [
                Clip(
                    key=clip_key(digest, span.begin, config.fps, bucket),
                    source=video.source,
                    source_digest=digest,
                    begin=span.begin,
                    end=round(span.begin + bucket.frames / config.fps, 6),
                    fps=config.fps,
                    bucket=bucket,
                    crop=found.crop,
                    caption=caption,
                    scores=scores,
                    extra=dict(video.extra),
                )
                for bucket in span.buckets
            ]
    prints = [zlib.compress(p.tobytes()) for p in (found.grey, found.inner) if config.near_dedup and len(p)]
    return VideoPlan(video.source, digest, tuple(clips), tuple(rejects), tuple(prints))


def _scan(path: Path, config: PipelineConfig, decoder: DecoderProcess) -> Scan:
    for attempt in range(1, config.limits.attempts + 1):
        try:
            return decoder.scan(path, config.cuts, config.filters)
        except DecoderDied:
            if attempt == config.limits.attempts:
                raise
    raise AssertionError("attempts is at least 1")


def refused(video: SourceVideo, digest: str, stage: str, reason: str, detail: str) -> VideoPlan:
    """Return the plan of a video that is refused whole."""
    return VideoPlan(video.source, digest, (), (Reject(video.source, stage, reason, detail),))
