"""Black bars: found over the frames, cut off before the resize, recorded."""

from __future__ import annotations

from pathlib import Path

import av
import numpy as np
import pytest

from pipeline import video
from pipeline.analysis.letterbox import Bars
from pipeline.config import CutConfig, DecodeLimits, FilterConfig, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, SourceVideo, clip_times
from pipeline.shards.schemas import clip_rows, clips_of
from pipeline.video import Request, VideoError
from tests.helpers.scans import only

BLACK = 16.0
CROP = FilterConfig(letterbox="crop")


def boxed(clips: Path, out: Path, top: int, bottom: int, left: int, right: int, rotation: int = 0) -> Path:
    """One second of a real clip with black bars around it; the picture inside is 272 x 640."""
    frames = [image for _, (_, image) in zip(range(25), video.iter_frames(clips / "bikes.mp4"))]
    with av.open(str(out), "w") as container:
        stream = container.add_stream("libx264", rate=25)
        stream.height, stream.width, stream.pix_fmt = 272 + top + bottom, 640 + left + right, "yuv420p"
        stream.options = {"crf": "18", "preset": "veryfast"}
        if rotation:
            stream.set_display_rotation(rotation)
        for image in frames:
            padded = np.pad(image, ((top, bottom), (left, right), (0, 0)))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(padded, format="rgb24")))
        container.mux(stream.encode(None))
    return out


@pytest.mark.parametrize(
    ("bars", "crop"),
    [
        ((0, 0, 0, 0), ""),
        ((64, 64, 0, 0), "640:272:0:64"),
        ((0, 0, 80, 80), "640:272:80:0"),
        ((40, 24, 16, 0), "640:272:16:40"),
    ],
)
def test_bars_are_found_to_the_pixel(clips: Path, tmp_path: Path, bars: tuple[int, int, int, int], crop: str) -> None:
    path = boxed(clips, tmp_path / "boxed.mp4", *bars)
    with DecoderProcess(DecodeLimits()) as decoder:
        found = only(decoder.scan(path, CutConfig(method="none"), CROP))
        assert found.crop == crop and (found.width, found.height) == (640, 272)
        assert only(decoder.scan(path, CutConfig(method="none"))).crop == "", "they are looked for only when asked"
        (whole,) = decoder.read(clips / "bikes.mp4", [Request((0.0, 0.4), 64, 64)])
        (cut,) = decoder.read(path, [Request((0.0, 0.4), 64, 64, crop)])
    assert np.abs(whole.astype(int) - cut.astype(int)).mean() < 3, "the picture is the one without bars"


def test_a_rotated_video_is_cut_before_it_is_turned(clips: Path, tmp_path: Path) -> None:
    path = boxed(clips, tmp_path / "turned.mp4", 64, 64, 0, 0, rotation=-90)
    with DecoderProcess(DecodeLimits()) as decoder:
        found = only(decoder.scan(path, CutConfig(method="none"), CROP))
        (cut,) = decoder.read(path, [Request((0.0,), 64, 64, found.crop)])
    (upright,) = video.read_frames(clips / "bikes.mp4", [0.0], 64, 64)
    assert found.crop == "640:272:0:64" and (found.width, found.height) == (272, 640)
    assert np.abs(np.rot90(upright, -1).astype(int) - cut[0].astype(int)).mean() < 3


def test_what_is_no_letterbox() -> None:
    def crop(frames: list[np.ndarray]) -> str:
        bars = Bars(BLACK)
        for frame in frames:
            bars.add(frame.astype(np.uint8))
        return bars.crop()

    rng = np.random.default_rng(0)
    bright = rng.integers(60, 200, (100, 160))
    letterbox = bright.copy()
    letterbox[:12] = letterbox[88:] = 3
    assert crop([letterbox] * 10) == "160:76:0:12"
    assert crop([letterbox] * 2) == "", "two frames say too little"
    noisy = letterbox.copy()
    noisy[5, 33] = noisy[95, 7] = 90
    assert crop([noisy] * 10) == "160:76:0:12", "a pixel of noise is no picture"
    subtitle = letterbox.copy()
    subtitle[92:97, 60:100] = 230
    assert crop([letterbox] * 6 + [subtitle] * 4) == "160:84:0:12", (
        "the bar with subtitles is kept, down to their last line but one"
    )
    assert crop([letterbox] * 99 + [bright]) == "160:76:0:12", "one frame of a hundred is a flash"
    assert crop([letterbox] * 5 + [bright] * 5) == "", "half of the film fills the frame"
    assert crop([np.zeros((100, 160))] * 10) == "", "black throughout"
    assert crop([np.zeros((100, 160))] * 50 + [letterbox] * 10) == "160:76:0:12", "black frames say nothing"
    lamp = np.zeros((100, 160), int)
    lamp[40:60, 70:90] = 200
    assert crop([lamp] * 10) == "", "a lamp in the dark is no letterbox"
    thin = bright.copy()
    thin[:1] = 0
    assert crop([thin] * 10) == ""
    odd = bright.copy()
    odd[:13] = odd[87:] = 0
    assert crop([odd] * 10) == "160:72:0:14", "inwards to even lines"
    assert crop([letterbox] * 5 + [letterbox[:, :80]] * 5) == "", "frames of changing size"


def test_the_plan_records_the_crop_and_uses_the_cut_shape(clips: Path, tmp_path: Path) -> None:
    path = boxed(clips, tmp_path / "boxed.mp4", 200, 200, 0, 0)  # 640 x 672, nearly square; 640 x 272 without the bars
    buckets = (Bucket(frames=5, height=64, width=64), Bucket(frames=5, height=32, width=80))
    common = {"buckets": buckets, "aspect": "nearest", "min_free_gb": 0}
    with DecoderProcess(DecodeLimits()) as decoder:
        kept = plan_video(SourceVideo(str(path)), PipelineConfig(**common), decoder)  # type: ignore[arg-type]
        crop = PipelineConfig(**common, filters=FilterConfig(letterbox="crop"))  # type: ignore[arg-type]
        cut = plan_video(SourceVideo(str(path)), crop, decoder)
        assert {(c.crop, c.bucket) for c in kept.clips} == {("", buckets[0])}
        assert {(c.crop, c.bucket) for c in cut.clips} == {("640:272:0:200", buckets[1])}
        assert clips_of(clip_rows(cut.clips, 0)) == list(cut.clips)
        clip = cut.clips[0]
        (frames,) = decoder.read(path, [Request(clip_times(clip), 32, 80, clip.crop)])
        assert frames[:, 0].mean() > 20 and frames[:, -1].mean() > 20, "no bar is left"
        with pytest.raises(VideoError, match="no part 9000:9000:0:0"):
            list(decoder.read(path, [Request((0.0,), 32, 32, "9000:9000:0:0")]))
