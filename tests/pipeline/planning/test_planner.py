from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.analysis.scan import Scan
from pipeline.config import CutConfig, DecodeLimits, FilterConfig, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.planning.planner import matching_buckets, plan_video, spans
from pipeline.records import Bucket, SourceVideo, VideoPlan, clip_key
from pipeline.video import Request
from tests.helpers.fakes import timed

SMALL = Bucket(frames=5, height=32, width=32)
LONG = Bucket(frames=17, height=32, width=32)


@given(
    begin=st.floats(0, 100),
    length=st.floats(0.01, 60),
    fps=st.sampled_from([4.0, 8.0, 12.0, 23.976]),
    stride=st.sampled_from([0.25, 0.5, 1.0]),
)
@settings(max_examples=200, deadline=None)
def test_spans_stay_in_their_shot_and_cover_it(begin: float, length: float, fps: float, stride: float) -> None:
    end = begin + length
    found = spans(begin, end, (SMALL, LONG), fps, stride)
    assert bool(found) == (4 / fps < length - 1e-6) or abs(4 / fps - length) < 1e-5
    for span in found:
        longest = max(bucket.frames for bucket in span.buckets)
        assert span.begin >= begin - 1e-6 and span.begin + (longest - 1) / fps < end
        assert SMALL in span.buckets
    for before, after in pairwise(found):
        assert after.begin - before.begin == pytest.approx(longest / fps * stride, abs=2e-6)
    if found:
        assert found[-1].begin + (longest - 1) / fps + longest / fps * stride >= end - 1e-5, "no room was left unused"


def test_all_buckets_take_the_same_spans() -> None:
    found = spans(0.0, 4.3, (SMALL, LONG), 8.0, 1.0)
    assert [(span.begin, span.buckets) for span in found] == [(0.0, (SMALL, LONG)), (2.125, (SMALL, LONG))]
    assert [span.buckets for span in spans(0.0, 1.0, (SMALL, LONG), 8.0, 1.0)] == [(SMALL,)]
    assert spans(0.0, 0.4, (SMALL, LONG), 8.0, 1.0) == []


def test_keys_are_stable_and_differ() -> None:
    assert clip_key("ab" * 16, 1.5, 8.0, SMALL) == "dabe26abf4c7b701e7eddbc6fa8cfd43", (
        "changing it orphans every shard ever made"
    )
    keys = {clip_key(d * 16, b, 8.0, s, c) for d in ("ab", "cd") for b in (0.0, 1.5) for s in (SMALL, LONG) for c in (0, 1)}
    assert len(keys) == 16 and all("." not in key and len(key) == 32 for key in keys)


def test_nearest_aspect() -> None:
    wide, tall = Bucket(frames=5, height=32, width=64), Bucket(frames=5, height=64, width=32)
    assert matching_buckets((wide, tall, SMALL), 1920, 1080, "nearest") == (wide,)
    assert matching_buckets((wide, tall, SMALL), 720, 720, "nearest") == (SMALL,)
    assert matching_buckets((wide, tall), 720, 720, "all") == (wide, tall)


@pytest.fixture(scope="module")
def decoder():
    with DecoderProcess(DecodeLimits()) as child:
        yield child


def plan(path: Path | str, decoder: DecoderProcess, **fields: object) -> VideoPlan:
    config = PipelineConfig(buckets=(SMALL, LONG), **fields)  # type: ignore[arg-type]
    return plan_video(SourceVideo(str(path)), config, decoder)


def test_a_real_video_is_cut_at_its_shots(clips: Path, decoder: DecoderProcess) -> None:
    found = plan(clips / "bikes.mp4", decoder)
    cuts = [0.0, 1.2, 3.04, 5.48, 7.48, 9.68, 10.0]
    for clip in found.clips:
        last = clip.begin + (clip.bucket.frames - 1) / 8
        assert any(a - 1e-6 <= clip.begin and last < b for a, b in pairwise(cuts)), clip
    assert [r.reason for r in found.rejects] == ["too_short"] and found.rejects[0].begin == pytest.approx(9.68)
    assert VideoPlan.parse(found.plain()) == found, "plans survive their part file"
    whole = plan(clips / "bikes.mp4", decoder, cuts=CutConfig(method="none"))
    assert len(whole.clips) == 2 * 4 and not whole.rejects, "(10 - 2) / 2.125 leaves room for four"


def test_planning_is_a_function_of_the_bytes(clips: Path, decoder: DecoderProcess, tmp_path: Path) -> None:
    copy = tmp_path / "other-name.mp4"
    copy.write_bytes((clips / "carphone_pristine.mp4").read_bytes())
    first, second = plan(clips / "carphone_pristine.mp4", decoder), plan(copy, decoder)
    assert [c.key for c in first.clips] == [c.key for c in second.clips] and first.digest == second.digest


@pytest.mark.parametrize(
    ("name", "stage", "reason"),
    [("absent.mp4", "probe", "not_found"), ("empty.mp4", "probe", "empty_file"), ("text.mp4", "probe", "unreadable")],
)
def test_a_bad_video_has_one_outcome(tmp_path: Path, decoder: DecoderProcess, name: str, stage: str, reason: str) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "text.mp4").write_text("this is no video " * 100)
    found = plan(tmp_path / name, decoder)
    assert not found.clips and [(r.stage, r.reason, r.begin) for r in found.rejects] == [(stage, reason, None)]


def test_filters_keep_scores(tmp_path: Path, decoder: DecoderProcess) -> None:
    path = timed(tmp_path / "dark.mkv", [i / 10 for i in range(3)] + [0.6, 0.7])
    dark = plan(path, decoder, filters=FilterConfig(min_luma=200))
    assert not dark.clips and {r.reason for r in dark.rejects} == {"black"}
    assert dark.rejects[0].scores["luma"] == pytest.approx(22, abs=6)
    small = plan(path, decoder, filters=FilterConfig(min_side=49))
    assert [(r.stage, r.reason) for r in small.rejects] == [("filters", "too_small")]
    still = plan(path, decoder, filters=FilterConfig(min_motion=100))
    assert {r.reason for r in still.rejects} == {"static"}
    blurred = plan(path, decoder, filters=FilterConfig(min_sharpness=1))
    assert {r.reason for r in blurred.rejects} == {"blurred"}, "frames of one grey have no edges"


def test_a_damaged_video_is_refused_or_its_prefix_used(shared: Path, decoder: DecoderProcess) -> None:
    path = shared / "data" / "odd" / "decord_corrupted.mp4"
    refused = plan(path, decoder)
    assert not refused.clips and refused.rejects[0].reason == "damaged"
    prefix = plan(path, decoder, damaged="prefix", cuts=CutConfig(method="none"))
    assert prefix.clips and max(c.begin + (c.bucket.frames - 1) / 8 for c in prefix.clips) <= 2.8


def test_sidecar_wins_over_the_table(tmp_path: Path, decoder: DecoderProcess) -> None:
    path = timed(tmp_path / "a.mkv", [i / 10 for i in range(20)])
    video = SourceVideo(str(path), "from the table", {"licence": "CC0"})
    config = PipelineConfig(buckets=(SMALL,))
    assert {c.caption for c in plan_video(video, config, decoder).clips} == {"from the table"}
    path.with_suffix(".txt").write_text("from the sidecar\n")
    found = plan_video(video, config, decoder).clips
    assert {c.caption for c in found} == {"from the sidecar"} and found[0].extra == {"licence": "CC0"}


class InParts(DecoderProcess):
    """Scans in parts of 50 frames, as a film of many hours is."""

    def scan(self, path: str | Path, cuts: CutConfig, filters: FilterConfig | None = None, part: int = 50) -> list[Scan]:
        return super().scan(path, cuts, filters, part)


def test_clips_of_a_long_film_lie_in_its_parts(clips: Path) -> None:
    config = PipelineConfig(buckets=(SMALL,), fps=8.0, cuts=CutConfig(method="content"))
    source = SourceVideo(str(clips / "bikes.mp4"))
    with DecoderProcess(config.limits) as decoder, InParts(config.limits) as other:
        whole, plan = plan_video(source, config, decoder), plan_video(source, config, other)
        assert len(plan.clips) > 6 and abs(len(plan.clips) - len(whole.clips)) <= 5 and plan.digest == whole.digest
        assert {int(clip.begin / 2) for clip in plan.clips} == {0, 1, 2, 3, 4}, "all five parts of two seconds have clips"
        for clip in plan.clips:
            assert clip.begin // 2 == (clip.begin + 4 / 8 - 1e-6) // 2, "none lies in two parts"
            assert clip.begin + 4 / 8 < 10
        requests = [Request(tuple(clip.begin + k / 8 for k in range(5)), 32, 32) for clip in plan.clips]
        assert len(list(other.read(source.source, requests))) == len(requests)
    assert len(plan.fingerprints) == len(whole.fingerprints)
