"""DOC from pipeline/encoding/encoder.py."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import groupby

from pipeline.config import PipelineConfig
from pipeline.corpus import fetch
from pipeline.decoding.process import DecoderDied, DecoderProcess
from pipeline.records import Clip, Reject, clip_times
from pipeline.shards.exclusions import hidden, taken_down
from pipeline.video import Frames, Request, VideoError

Outcome = tuple[Clip, "Frames | Reject"]


def decoded(
    clips: Sequence[Clip], decoder: DecoderProcess, config: PipelineConfig, gone: Sequence[str] = ()
) -> Iterator[Outcome]:
    """Decode clips video by video (neighbours of one source in one pass); each gets its frames or its refusal, in order.

    gone: sources taken down (pipeline.index.excluded); their clips are refused unseen.
    """
    for name, group in groupby(clips, key=lambda clip: clip.source):
        wanted = list(group)
        done = 0
        if hidden(name, gone):
            yield from ((clip, taken_down(clip)) for clip in wanted)
            continue
        try:
            with fetch.local(name) as path:
                for attempt in range(1, config.limits.attempts + 1):
                    try:
                        requests = [
                            Request(clip_times(clip), clip.bucket.height, clip.bucket.width, clip.crop) for clip in wanted
                        ]
                        for number, frames in enumerate(decoder.read(path, requests)):
                            # After a death the pass begins anew, so that a clip's pixels come from one way of reading;
                            # what was given before is not given again.
                            if number >= done:
                                yield wanted[number], frames
                                done += 1
                        break
                    except DecoderDied:
                        if attempt == config.limits.attempts:
                            raise
        except VideoError as error:
            yield from ((clip, _refusal(clip, error.reason, str(error))) for clip in wanted[done:])
        except DecoderDied as error:
            detail = f"{error}; quarantined after {config.limits.attempts} attempts"
            yield from ((clip, _refusal(clip, error.reason, detail)) for clip in wanted[done:])


def _refusal(clip: Clip, reason: str, detail: str) -> Reject:
    return Reject(clip.source, "encode", reason, detail, clip.begin, clip.end, clip.scores, clip.key)
