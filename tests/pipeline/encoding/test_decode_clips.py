"""Clips to frames or refusals: a decoder that dies is tried again and then quarantines what is left."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from pipeline.config import DecodeLimits, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.encoding.decode_clips import decode_clips
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, Clip, Reject, SourceVideo
from tests.helpers.encoding import BUCKETS


def clips_of(path: Path, count: int) -> list[Clip]:
    settings = PipelineConfig(buckets=BUCKETS)
    with DecoderProcess(settings.limits) as decoder:
        return list(plan_video(SourceVideo(str(path)), settings, decoder).clips)[:count]


class Killed(DecoderProcess):
    """A decoder whose child is killed just before it gives its second clip, the first `times` times."""

    def __init__(self, limits: DecodeLimits, times: int) -> None:
        super().__init__(limits)
        self.times = times

    def read(self, path, requests):  # type: ignore[no-untyped-def]
        for number, frames in enumerate(super().read(path, requests)):
            yield frames
            if number == 0 and self.times:
                self.times -= 1
                assert self.pid is not None
                os.kill(self.pid, signal.SIGKILL)
                self._child.wait()  # type: ignore[union-attr]
                self._buffer.clear()


@pytest.mark.parametrize(("deaths", "refused"), [(0, 0), (1, 0), (2, 1)])
def test_a_decoder_may_die_once_and_is_then_quarantined(clips: Path, deaths: int, refused: int) -> None:
    """One clip was given before the first death; it keeps its place, and the rest is refused after the second."""
    wanted = clips_of(clips / "bikes.mp4", 4)
    settings = PipelineConfig(buckets=(Bucket(frames=5, height=512, width=512),))
    with Killed(settings.limits, deaths) as decoder:
        found = list(decode_clips(wanted, decoder, settings))
    assert [clip for clip, _ in found] == wanted
    refusals = [item for _, item in found if isinstance(item, Reject)]
    assert bool(refusals) == bool(refused)
    for reject in refusals:
        assert reject.reason == "killed" and reject.stage == "encode" and "quarantined after 2 attempts" in reject.detail


def test_clips_of_a_source_that_was_taken_down_are_refused_without_being_decoded(clips: Path) -> None:
    wanted = clips_of(clips / "bikes.mp4", 3)
    settings = PipelineConfig(buckets=BUCKETS)
    with DecoderProcess(settings.limits) as decoder:
        found = list(decode_clips(wanted, decoder, settings, [f"{clips}/"]))
        assert decoder.pid is None, "no child was started"
    assert [clip for clip, _ in found] == wanted
    assert all(isinstance(item, Reject) and (item.stage, item.reason) == ("exclude", "taken_down") for _, item in found)


def test_a_video_that_changed_since_it_was_planned_is_refused(tmp_path: Path, clips: Path) -> None:
    """Before, the new file's pixels went under the old file's digest, key and caption."""
    path = tmp_path / "a.mp4"
    path.write_bytes((clips / "bikes.mp4").read_bytes())
    wanted = clips_of(path, 2)
    path.write_bytes((clips / "carphone_pristine.mp4").read_bytes())
    settings = PipelineConfig(buckets=BUCKETS)
    with DecoderProcess(settings.limits) as decoder:
        found = list(decode_clips(wanted, decoder, settings))
        assert [clip for clip, _ in found] == wanted
        assert all(isinstance(item, Reject) and (item.stage, item.reason) == ("encode", "changed") for _, item in found)
        path.write_bytes((clips / "bikes.mp4").read_bytes())
        assert not any(isinstance(item, Reject) for _, item in decode_clips(wanted, decoder, settings))
