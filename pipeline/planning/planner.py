"""From a video to its clips: by timestamps, one span for all buckets, every refusal recorded.

In:  `SourceVideo`s, the configuration, a `DecoderProcess`.
Out: `VideoPlan`s; clip keys; spans. All pure functions of the video's bytes and the configuration.
Called by: pipeline.ray_job (planning tasks).
"""

from __future__ import annotations

import zlib
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.analysis.scan import Scan
from pipeline.analysis.shots import shots
from pipeline.config import PipelineConfig
from pipeline.corpus import fetch
from pipeline.corpus.fetch import content_digest
from pipeline.decoding.process import DecoderDied, DecoderProcess
from pipeline.planning import filters
from pipeline.planning.spans import spans, suited
from pipeline.records import Clip, Reject, SourceVideo, VideoPlan, clip_key
from pipeline.video import VideoError

if TYPE_CHECKING:
    from pipeline.planning.captioner import Captioner


def plan_video(
    video: SourceVideo, config: PipelineConfig, decoder: DecoderProcess, captioner: Captioner | None = None
) -> VideoPlan:
    """Look at one video and plan its clips. Never raises for a bad video: that is an outcome.

    captioner: describes clips that have no caption.
    """
    digest = ""
    try:
        with fetch.local(video.source) as path:
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
    caption = fetch.sidecar(video.source) or video.caption
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
