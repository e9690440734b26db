"""From a video to its clips: by timestamps, one span for all buckets, every refusal recorded.

In:  a `SourceVideo`, the configuration, a `DecoderProcess`.
Out: a `VideoPlan`. It is a pure function of the video's bytes and the configuration.
"""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.scan import Scan
from pipeline.analysis.shots import shots
from pipeline.config import PipelineConfig
from pipeline.corpus import fetch
from pipeline.corpus.fetch import content_digest
from pipeline.decoding.containment import contained
from pipeline.decoding.process import DecoderDied, DecoderProcess
from pipeline.decoding.retry import quarantine_detail, retried
from pipeline.planning import filters
from pipeline.records import Bucket, Clip, Reject, SourceVideo, VideoPlan, clip_key
from pipeline.video import EPSILON, VideoError

if TYPE_CHECKING:
    from pipeline.planning.captioner import Captioner


def plan_video(
    video: SourceVideo, config: PipelineConfig, decoder: DecoderProcess, captioner: Captioner | None = None
) -> VideoPlan:
    """Scan one video and plan its clips. A bad video raises nothing: its refusal is the outcome.

    captioner: writes the captions of clips that have none.
    """
    digest = ""
    if video.fault:
        return refused(video, "", "probe", "bad_name", video.fault)
    try:
        with contained(video.source), fetch.local(video.source) as path:
            file = fetch.Identity(path)
            digest = content_digest(path)
            parts = retried(lambda: decoder.scan(path, config.cuts, config.filters), config.limits.attempts)
            plan = _checked(video, digest, parts, config)
            if captioner is not None and plan.clips:
                from pipeline.planning.captioner import with_captions

                shape = parts[0].height, parts[0].width
                plan = with_captions(plan, path, shape, captioner, config.captioner, decoder, config.limits.attempts)
            file.check()
            return plan
    except VideoError as error:
        return refused(video, digest, "probe", error.reason, str(error))
    except DecoderDied as error:
        return refused(video, digest, "probe", error.reason, quarantine_detail(error, config.limits.attempts))


def _checked(video: SourceVideo, digest: str, parts: Sequence[Scan], config: PipelineConfig) -> VideoPlan:
    damage = next((part.damage for part in parts if part.damage), "")
    if damage and config.damaged == "refuse":
        return refused(video, digest, "probe", "damaged", damage)
    small = [min(part.width, part.height) < config.filters.min_side for part in parts]
    if all(small):
        return refused(video, digest, "filters", "too_small", _too_small(parts[0], config))
    clips: list[Clip] = []
    rejects: list[Reject] = []
    fingerprints: list[list[NDArray[np.uint8]]] = [[], []]
    caption = fetch.sidecar(video.source) or video.caption
    for part, too_small in zip(parts, small):
        if too_small:
            span = round(float(part.times[0]), 6), round(part.seconds, 6)
            rejects.append(Reject(video.source, "filters", "too_small", _too_small(part, config), *span))
            continue
        laid, refusals = _lay_clips(video, digest, caption, part, config)
        clips += laid
        rejects += refusals
        for each, found in zip(fingerprints, (part.fingerprint, part.inner_fingerprint)):
            each.append(found)
    looked_at = [np.concatenate(each) for each in fingerprints] if config.near_dedup else []
    packed = tuple(zlib.compress(one.tobytes()) for one in looked_at if len(one))
    return VideoPlan(video.source, digest, tuple(clips), tuple(rejects), packed)


def _too_small(found: Scan, config: PipelineConfig) -> str:
    return f"{found.width}x{found.height} pixels; pipeline.filters.min_side is {config.filters.min_side}"


def _lay_clips(
    video: SourceVideo, digest: str, caption: str, found: Scan, config: PipelineConfig
) -> tuple[list[Clip], list[Reject]]:
    """Return the clips of a part of a video, and what of it is refused."""
    clips: list[Clip] = []
    rejects: list[Reject] = []
    buckets = matching_buckets(config.buckets, found.width, found.height, config.aspect)
    shortest = min(bucket.frames for bucket in buckets)
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
    return clips, rejects


def refused(video: SourceVideo, digest: str, stage: str, reason: str, detail: str) -> VideoPlan:
    """Return the plan of a video that is refused as a whole."""
    return VideoPlan(video.source, digest, (), (Reject(video.source, stage, reason, detail),))


@dataclass(frozen=True)
class Span:
    """A part of a shot. Each of its buckets makes a clip that begins at `begin`."""

    begin: float
    end: float
    """Time just after the last frame of the longest clip."""
    buckets: tuple[Bucket, ...]


def spans(begin: float, end: float, buckets: Sequence[Bucket], fps: float, stride: float) -> list[Span]:
    """Divide a shot [begin, end), in seconds, into spans.

    The longest bucket whose last frame still lies in the shot sets the distance of the spans; every bucket that is not longer makes
    a clip in each of them, so that one decode serves them all. Frame k of a clip is at begin + k / fps.
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


def matching_buckets(buckets: Sequence[Bucket], width: int, height: int, rule: str) -> tuple[Bucket, ...]:
    """Return the buckets for a video of this shape; rule `all`: every bucket, `nearest`: those nearest to it in aspect ratio."""
    if rule == "all":
        return tuple(buckets)
    off = [abs(math.log((bucket.width / bucket.height) / (width / height))) for bucket in buckets]
    return tuple(bucket for bucket, distance in zip(buckets, off) if distance <= min(off) + EPSILON)
