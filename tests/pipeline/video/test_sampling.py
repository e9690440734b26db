from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline import video
from pipeline.video import Request, RequestError, VideoError
from tests.helpers.fakes import numbered, numbers, timed
from tests.helpers.odd_videos import encode, moving


def test_frames_are_chosen_by_time_not_index(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.15, 0.6, 0.61, 1.2, 1.3]
    path = timed(tmp_path / "vfr.mkv", times, offset=0.7)
    info = video.probe(path)
    assert info.times == pytest.approx(times, abs=1e-3) and info.variable_rate and info.start == pytest.approx(0.7)
    asked = [0.0, 0.05, 0.1, 0.2, 0.59, 0.605, 1.0, 1.2, 1.35]
    assert numbers(video.read_frames(path, asked, 32, 32)) == [0, 0, 1, 2, 2, 3, 4, 5, 6]


def test_a_time_past_the_end_is_refused(tmp_path: Path) -> None:
    path = timed(tmp_path / "a.mkv", [i / 10 for i in range(10)])
    with pytest.raises(VideoError, match="ends at") as caught:
        video.read_frames(path, [0.5, 1.5], 32, 32)
    assert caught.value.reason == "too_short"


@pytest.mark.parametrize(("keys", "suffix"), [(10, "mp4"), (1000, "mp4"), (10, "mkv"), (10, "ts"), (1000, "ts")])
def test_seeking_gives_the_same_frames_as_decoding_through(tmp_path: Path, keys: int, suffix: str) -> None:
    """Key frames every second, or only one: then a seek lands at the start, and must not be tried for ever."""
    path = timed(tmp_path / f"long.{suffix}", [i / 10 for i in range(300)], keys=keys)
    far = video.read_frames(path, [25.0, 25.1, 25.2], 32, 32)
    assert len(np.unique(far.mean((1, 2, 3)).round())) == 3
    through = [image for time, image in video.iter_frames(path, height=32, width=32) if 24.95 < time < 25.25]
    assert np.array_equal(far, np.stack(through))


def test_requests_share_one_pass(clips: Path) -> None:
    path = clips / "carphone_pristine.mp4"
    times = tuple(i / 8 for i in range(9))
    later = tuple(1 + i / 8 for i in range(9))
    wanted = [Request(times, 64, 64), Request(times[:5], 32, 48), Request(later, 64, 64)]
    got = list(video.read_clips(path, wanted))
    assert [g.shape for g in got] == [(9, 64, 64, 3), (5, 32, 48, 3), (9, 64, 64, 3)]
    for request, clip in zip(wanted, got):
        assert np.array_equal(clip, video.read_frames(path, request.times, request.height, request.width))


def test_requests_out_of_order_are_refused(clips: Path) -> None:
    with pytest.raises(RequestError, match="in order"):
        list(video.read_clips(clips / "bikes.mp4", [Request((1.0,), 32, 32), Request((0.5,), 32, 32)]))
    with pytest.raises(RequestError, match="must not fall"):
        video.read_frames(clips / "bikes.mp4", [1.0, 0.5], 32, 32)


def test_iter_frames_at_a_rate(tmp_path: Path) -> None:
    path = timed(tmp_path / "a.mkv", [i / 30 for i in range(31)])
    found = list(video.iter_frames(path, fps=10, height=16, width=16))
    assert [round(time, 3) for time, _ in found] == [i / 10 for i in range(11)]
    assert numbers(np.stack([image for _, image in found])) == [(8 + 7 * 3 * i) % 240 // 7 - 1 for i in range(11)]


REFERENCE = json.loads((Path(__file__).parent / "ffmpeg_frames.json").read_text())
"""Made once with ffmpeg's own program (9.0): `ffmpeg -copyts -i FILE -map 0:v:0 -fps_mode passthrough -vf
showinfo,scale=8:8:flags=area,format=gray -f rawvideo -`: pts_time of each frame less the first one's, and the frame's 64 greys."""


@pytest.mark.parametrize("name", sorted(REFERENCE))
def test_frames_are_those_that_ffmpeg_shows_at_these_times(shared: Path, name: str) -> None:
    """Variable rates, edit lists, late starts, rotation and mirroring: same times, same frames, same way up."""
    path = shared / "data" / "odd" / name
    times = np.array(REFERENCE[name]["pts"])
    greys = np.array([np.frombuffer(bytes.fromhex(line), np.uint8) for line in REFERENCE[name]["grey"]]).astype(float)
    info = video.probe(path)
    assert info.times == pytest.approx(times, abs=1e-3)
    asked = np.arange(0, info.times[-1], 1 / 8)
    for time, image in zip(asked, video.read_frames(path, asked.tolist(), info.height, info.width), strict=True):
        shown = int(np.searchsorted(times, time + 1e-6, side="right")) - 1
        small = cv2.resize(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), (8, 8), interpolation=cv2.INTER_AREA).reshape(-1)
        distance = np.abs(greys - small).mean(axis=1)
        assert distance[shown] <= distance.min() + 0.5, f"at {time} s another frame than number {shown} was given"
        turned = [np.abs(greys[shown].reshape(8, 8) - np.rot90(small.reshape(8, 8), turn)).mean() for turn in (1, 2, 3)]
        assert distance[shown] <= min(turned), f"at {time} s the picture is turned"


def test_b_frames_and_their_edit_list_shift_nothing(tmp_path: Path) -> None:
    """libx264 with B-frames gives negative decoding times, which mp4 mends with an edit list."""
    path = tmp_path / "b.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"crf": "1", "bf": "3", "b-adapt": "0", "g": "12"}
        for image in numbered(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    info = video.probe(path)
    assert info.start == 0 and info.times == pytest.approx(np.arange(30) / 10)
    assert numbers(video.read_frames(path, [0.0, 0.35, 1.2, 2.9], 32, 32)) == [0, 3, 12, 29]


# ---- files whose clock begins before zero: the frames of a clip are those that ffmpeg shows at these times

EARLY_TIMES = [0.0, 0.1, 0.15, 0.6, 0.61, 0.7, 1.2, 1.3, 1.4, 1.55, 1.7, 1.8]
EARLY = 0.7
RATE = 8


def early(path: Path, b_frames: int) -> Path:
    """Frame i (grey 8 + 7 i) has the time stamp EARLY_TIMES[i] - 0.7 s, negative for the first five, and the muxer keeps it."""
    with av.open(str(path), "w", options={"avoid_negative_ts": "disabled", "mpegts_copyts": "1"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.options = {"crf": "1", "bf": str(b_frames), "b-adapt": "0", "g": "6", "sc_threshold": "0"}
        stream.codec_context.time_base = stream.time_base = Fraction(1, 1000)
        for image, time in zip(numbered(len(EARLY_TIMES)), EARLY_TIMES):
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
    path = early(tmp_path / name, b_frames)
    info = video.probe(path)
    times = np.array(EARLY_TIMES[skipped:]) - EARLY_TIMES[skipped]
    assert info.times == pytest.approx(times, abs=1e-3) and info.start == pytest.approx(EARLY_TIMES[skipped] - EARLY, abs=1e-3)
    asked = np.arange(0, times[-1] + 1e-6, 1 / RATE)
    found = numbers(video.read_frames(path, asked.tolist(), 48, 64))
    assert found == [skipped + int(np.searchsorted(times, time + 1e-6, side="right")) - 1 for time in asked]
    assert found == shown_by_ffmpeg(path)[: len(found)]
    later = numbers(video.read_frames(path, asked[3:].tolist(), 48, 64))
    assert later == found[3:], "a clip that begins later is cut from the same clock"


@pytest.mark.parametrize(
    ("name", "x264"),
    [
        ("refresh.mp4", "keyint=48:intra-refresh=1:bframes=0"),
        ("open.mp4", "keyint=48:open-gop=1:bframes=3"),
        ("open.ts", "keyint=48:open-gop=1:bframes=3"),
        ("closed.mp4", "keyint=48:bframes=3"),
        ("decoding-order.avi", "keyint=48:bframes=3"),
        ("interlaced.mp4", "keyint=48:bframes=3:interlaced=1:tff=1"),
        ("interlaced.ts", "keyint=48:bframes=0:interlaced=1:bff=1"),
    ],
)
def test_pixels_do_not_depend_on_where_decoding_begins(tmp_path: Path, name: str, x264: str) -> None:
    """A landing by its time alone gave smeared pictures: of streams without key frames, and before a key frame of an open GOP."""
    path = encode(tmp_path / name, moving(480, 48, 64), x264=x264)
    times = [float(second) for second in range(20)]
    through = video.read_frames(path, times, 48, 64)
    for second in (9, 12, 17, 19):  # more than SEEK_GAP after the beginning: each is a seek of its own
        (alone,) = video.read_clips(path, [Request((float(second),), 48, 64)])
        assert np.array_equal(alone[0], through[second]), f"{second} s"
    both = list(video.read_clips(path, [Request((0.0,), 48, 64), Request((11.0, 12.0), 48, 64), Request((19.0,), 48, 64)]))
    assert np.array_equal(np.concatenate(both), through[[0, 11, 12, 19]])


@pytest.mark.parametrize("x264", ["keyint=48:bframes=3", "keyint=48:bframes=3:interlaced=1"])
def test_a_seek_is_still_made_where_it_is_safe(tmp_path: Path, x264: str) -> None:
    path, decoded = encode(tmp_path / "closed.mp4", moving(480, 48, 64), x264=x264), [0]

    def beat() -> None:
        decoded[0] += 1

    next(video.read_clips(path, [Request((18.0,), 48, 64)], beat=beat))
    assert decoded[0] < 100, "of 480 frames"


@pytest.mark.parametrize("name", ["broken.mkv", "broken.ts", "broken.flv", "broken.nut"])
def test_a_file_that_breaks_off_gives_frames_or_says_so(tmp_path: Path, name: str) -> None:
    """Looking for where to seek reads packets to the end of the file; what is wrong there is not an error of the library's."""
    path = encode(tmp_path / name, moving(480, 48, 64), x264="keyint=24:bframes=0")
    whole = path.read_bytes()
    through = video.read_frames(path, [10.0], 48, 64)
    ends = set()
    for part in range(12, 40, 2):
        path.write_bytes(whole[: part * len(whole) // 40])
        try:
            (clip,) = video.read_clips(path, [Request((10.0,), 48, 64)])
        except VideoError as error:
            ends.add(error.reason)
        else:
            ends.add("read")
            assert np.array_equal(clip, through)
    assert ends > {"read"}, "both happen: the moment lies at half of the file"
