"""Planned clips to frames: each clip gets its pixels or the reason why it has none.

In:  clips in the order of the plan, a `DecoderProcess`.
Out: (clip, frames or `Reject`) in the same order; a bad video, one that changed since it was planned, or a decoder that dies is an
     outcome, not an error.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from itertools import groupby

from pipeline.config import PipelineConfig
from pipeline.corpus import fetch
from pipeline.decoding.containment import contained
from pipeline.decoding.process import DecoderDied, DecoderProcess
from pipeline.decoding.retry import quarantine_detail, resumed
from pipeline.records import Clip, Reject, clip_times
from pipeline.shards.layout import hidden, taken_down
from pipeline.video import Frames, Request, VideoError

Outcome = tuple[Clip, "Frames | Reject"]
"""A clip and what became of it."""


def decode_clips(
    clips: Sequence[Clip], decoder: DecoderProcess, config: PipelineConfig, gone: Sequence[str] = ()
) -> Iterator[Outcome]:
    """Decode clips video by video, neighbours of one source in one pass; yield each with its frames or its refusal, in order.

    gone: sources that were taken down (excluded.json); their clips are refused without being decoded.
    """
    for (name, digest), group in groupby(clips, key=lambda clip: (clip.source, clip.source_digest)):
        wanted = list(group)
        done = 0
        if hidden(name, gone):
            yield from ((clip, taken_down(clip)) for clip in wanted)
            continue
        try:
            with contained(name), fetch.local(name) as path:
                file = fetch.Identity(path)
                file.check_content(digest)
                requests = [Request(clip_times(clip), clip.bucket.height, clip.bucket.width, clip.crop) for clip in wanted]
                for frames in resumed(partial(decoder.read, path, requests), config.limits.attempts):
                    file.check()
                    yield wanted[done], frames
                    done += 1
        except VideoError as error:
            yield from ((clip, _refusal(clip, error.reason, str(error))) for clip in wanted[done:])
        except DecoderDied as error:
            detail = quarantine_detail(error, config.limits.attempts)
            yield from ((clip, _refusal(clip, error.reason, detail)) for clip in wanted[done:])


def _refusal(clip: Clip, reason: str, detail: str) -> Reject:
    return Reject(clip.source, "encode", reason, detail, clip.begin, clip.end, clip.scores, clip.key)
