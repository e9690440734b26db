from __future__ import annotations

import errno
from pathlib import Path

import pytest

from cluster.runtime.atomic_files import DiskFull
from pipeline.config import DecodeLimits, PipelineConfig
from pipeline.decoding.containment import account, contained
from pipeline.decoding.process import DecoderDied, DecoderProcess
from pipeline.encoding import decode_clips
from pipeline.planning import planner
from pipeline.records import Bucket, SourceVideo
from pipeline.video import DeviceError, VideoError
from tests.helpers.fakes import clip, timed
from tests.helpers.scans import only


def test_an_unforeseen_error_is_a_refusal_with_its_text() -> None:
    with (
        pytest.raises(VideoError, match=r"^a\.mp4: KeyError: 'moov' \(test_containment\.py:\d+\)$") as caught,
        contained("a.mp4"),
    ):
        raise KeyError("moov")
    assert caught.value.reason == "unexpected" and account(ValueError()) == "ValueError"


@pytest.mark.parametrize(
    "error",
    [VideoError("damaged", "x"), DecoderDied("crash", "x"), DeviceError("x"), DiskFull("x"), OSError(errno.ENOSPC, "full")],
)
def test_outcomes_and_what_concerns_the_host_pass_unchanged(error: Exception) -> None:
    with pytest.raises(type(error)) as caught, contained("a.mp4"):
        raise error
    assert caught.value is error


@pytest.mark.parametrize("kind", [ValueError, KeyError, AssertionError, NotImplementedError, RecursionError, UnicodeError])
def test_a_library_that_fails_over_one_video_ends_no_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type) -> None:
    def fail(*_: object) -> None:
        raise kind("the library's words")

    config = PipelineConfig(buckets=(Bucket(frames=5, height=16, width=16),))
    with DecoderProcess(config.limits) as decoder:
        with monkeypatch.context() as patch:
            patch.setattr(planner, "content_digest", fail)
            plan = planner.plan_video(SourceVideo(str(tmp_path / "a.mp4")), config, decoder)
        assert not plan.clips and [(r.stage, r.reason) for r in plan.rejects] == [("probe", "unexpected")]
        assert "the library's words" in plan.rejects[0].detail
        with monkeypatch.context() as patch:
            patch.setattr(decode_clips.fetch.Identity, "check_content", fail)
            found = list(decode_clips.decode_clips([clip(0), clip(1)], decoder, config))
        assert [(r.stage, r.reason) for _, r in found if not hasattr(r, "shape")] == [("encode", "unexpected")] * 2  # type: ignore[union-attr]


def test_the_child_answers_with_the_exception_and_lives_on(tmp_path: Path) -> None:
    """A request that makes a library raise stands for any other: before, the child died of it, `attempts` times."""
    timed(tmp_path / "a.mp4", [i / 8 for i in range(9)])
    with DecoderProcess(DecodeLimits()) as decoder:
        bad = {
            "op": "read",
            "path": str(tmp_path / "a.mp4"),
            "requests": [{"times": ["x"], "height": 8, "width": 8, "crop": ""}],
        }
        with pytest.raises(VideoError, match="TypeError") as caught:
            list(decoder._ask(bad))
        assert caught.value.reason == "unexpected"
        child = decoder.pid
        assert child is not None and decoder.deaths == 0
        from pipeline.config import CutConfig

        assert len(only(decoder.scan(tmp_path / "a.mp4", CutConfig())).times) == 9 and decoder.pid == child
