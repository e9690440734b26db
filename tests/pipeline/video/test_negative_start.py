"""Files whose clock begins before zero: the frames of a clip are those that ffmpeg shows at these times."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

from pipeline import video
from tests.helpers.fakes import numbered, numbers

TIMES = [0.0, 0.1, 0.15, 0.6, 0.61, 0.7, 1.2, 1.3, 1.4, 1.55, 1.7, 1.8]
EARLY = 0.7
RATE = 8


def written(path: Path, b_frames: int) -> Path:
    """Frame i (grey 8 + 7 i) has the time stamp TIMES[i] - 0.7 s, negative for the first five, and the muxer keeps it."""
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled", "mpegts_copyts": "1"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"crf": "1", "bf": str(b_frames), "b-adapt": "0", "g": "6", "sc_threshold": "0"}
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for image, time in zip(numbered(len(TIMES)), TIMES):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (time - EARLY)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        first = next(packet.pts for packet in container.demux(video=0) if packet.pts is not None)
        assert first < 0, "the file is what the test is about"
    return path


def shown_by_ffmpeg(path: Path) -> list[int]:
    """Numbers of the frames that ffmpeg's fps filter gives: round=up makes tick k the last frame whose time is at most k / RATE."""
    found = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        graph = av.filter.Graph()
        source, sink = graph.add_buffer(template=stream), graph.add("buffersink")
        first: float | None = None
        for frame in container.decode(stream):
            assert frame.pts is not None and frame.time_base is not None
            if first is None:
                first = float(frame.pts * frame.time_base)
                ticks = graph.add("fps", f"fps={RATE}:round=up:start_time={first}")
                source.link_to(ticks)
                ticks.link_to(sink)
                graph.configure()
            source.push(frame)
        source.push(None)
        while True:
            try:
                found.append(sink.pull().to_ndarray(format="rgb24"))
            except (av.error.EOFError, av.error.BlockingIOError):
                return numbers(np.stack(found))


@pytest.mark.parametrize(
    ("name", "b_frames", "skipped"),
    [
        ("plain.ts", 0, 0),
        ("reordered.ts", 2, 0),
        ("cut.mp4", 0, 5),  # mp4 writes an edit list that begins at zero: players show nothing that is before
    ],
)
def test_frames_of_a_file_that_begins_before_zero(tmp_path: Path, name: str, b_frames: int, skipped: int) -> None:
    path = written(tmp_path / name, b_frames)
    info = video.probe(path)
    times = np.array(TIMES[skipped:]) - TIMES[skipped]
    assert info.times == pytest.approx(times, abs=1e-3) and info.start == pytest.approx(TIMES[skipped] - EARLY, abs=1e-3)
    asked = np.arange(0, times[-1] + 1e-6, 1 / RATE)
    found = numbers(video.read_frames(path, asked.tolist(), 48, 64))
    assert found == [skipped + int(np.searchsorted(times, time + 1e-6, side="right")) - 1 for time in asked]
    assert found == shown_by_ffmpeg(path)[: len(found)]
    later = numbers(video.read_frames(path, asked[3:].tolist(), 48, 64))
    assert later == found[3:], "a clip that begins later is cut from the same clock"
