from __future__ import annotations

import json
import pickle
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pipeline import video
from pipeline.video import Request, VideoError
from tests.helpers.fakes import numbered, numbers, timed


def test_probe_counts_what_decodes(clips: Path) -> None:
    info = video.probe(clips / "bikes.mp4")
    assert (info.frames, info.width, info.height, info.codec) == (250, 640, 272, "h264")
    assert info.seconds == pytest.approx(10.0) and info.fps == pytest.approx(25.0)
    assert not info.variable_rate and info.damage == "" and info.times[0] == 0


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
    with pytest.raises(ValueError, match="in order"):
        list(video.read_clips(clips / "bikes.mp4", [Request((1.0,), 32, 32), Request((0.5,), 32, 32)]))
    with pytest.raises(ValueError, match="must not fall"):
        video.read_frames(clips / "bikes.mp4", [1.0, 0.5], 32, 32)


def test_resize_is_antialiased_and_crops_the_middle(tmp_path: Path) -> None:
    checks = (np.indices((64, 128)).sum(0) % 2 * 255).astype(np.uint8)
    checks[:, :32] = 0
    checks[:, 96:] = 255
    path = tmp_path / "checks.mp4"
    video.write_video(path, np.broadcast_to(checks[None, :, :, None], (4, 64, 128, 3)), 8)
    image = video.read_frames(path, [0.0], 16, 16)[0].astype(float)
    assert image[:, 1:-1].min() > 100 and image[:, 1:-1].max() < 155, "the middle square of a fine pattern averages to grey"


def test_rotation_and_mirror_are_applied(tmp_path: Path) -> None:
    path = timed(tmp_path / "turned.mp4", [0.0, 0.1], rotation=-90, size=(48, 64))
    info = video.probe(path)
    assert (info.width, info.height, info.rotation) == (48, 64, 90)


def test_rotation_puts_the_top_where_it_belongs(tmp_path: Path) -> None:
    stored = np.zeros((3, 48, 64, 3), np.uint8)
    stored[:, :, :32] = 255  # the left half; turned 90 degrees clockwise it becomes the top half
    path = tmp_path / "turned.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=10)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.set_display_rotation(-90)
        for image in stored:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    image = video.read_frames(path, [0.0], 64, 48)[0]
    assert image[:28].mean() > 240 and image[36:].mean() < 15


@pytest.mark.parametrize(("height", "width"), [(32, 32), (33, 47), (16, 64)])
def test_written_video_reads_back(tmp_path: Path, height: int, width: int) -> None:
    frames = numbered(9, height, width)
    path = tmp_path / "out.mp4"
    video.write_video(path, frames, 8)
    info = video.probe(path)
    assert (info.frames, info.height, info.width) == (9, height + height % 2, width + width % 2)
    assert info.pixel_format == "yuv420p" and info.codec == "h264" and info.fps == pytest.approx(8)
    back = video.read_frames(path, [i / 8 for i in range(9)], height, width)
    assert np.abs(back.astype(int) - frames.astype(int)).max() <= 4


def test_write_video_refuses_other_shapes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(T, H, W, 3\)"):
        video.write_video(tmp_path / "x.mp4", np.zeros((2, 3, 8, 8), np.float32), 8)  # type: ignore[arg-type]


def test_a_video_written_in_pieces_is_the_one_written_whole(tmp_path: Path) -> None:
    frames = numbered(90, 64, 48)
    video.write_video(tmp_path / "whole.mp4", frames, 8)
    part = tmp_path / ".pieces.mp4.part"
    with video.VideoWriter(tmp_path / "pieces.mp4", 8) as writer:
        sizes = []
        for begin, end in ((0, 1), (1, 5), (5, 70), (70, 90)):
            writer.append(frames[begin:end])
            sizes.append(part.stat().st_size)
        assert not (tmp_path / "pieces.mp4").exists() and sizes[2] > sizes[0], (
            "frames reach the disk before the last one is known"
        )
    # Not byte by byte: x264 itself gave another file once or twice in 250 times for the same frames.
    whole, pieces = (
        np.stack([image for _, image in video.iter_frames(tmp_path / name)]) for name in ("whole.mp4", "pieces.mp4")
    )
    assert np.abs(whole.astype(int) - pieces.astype(int)).max() <= 4 and np.abs(pieces.astype(int) - frames).max() <= 6
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pieces.mp4", "whole.mp4"]


def test_a_video_broken_off_leaves_what_was_there(tmp_path: Path) -> None:
    frames = numbered(3, 32, 32)
    (tmp_path / "a.mp4").write_bytes(b"older")
    with pytest.raises(ZeroDivisionError), video.VideoWriter(tmp_path / "a.mp4", 8) as writer:
        writer.append(frames)
        raise ZeroDivisionError
    with pytest.raises(ValueError, match="at least one frame"), video.VideoWriter(tmp_path / "a.mp4", 8):
        pass
    with pytest.raises(ValueError, match="do not fit"), video.VideoWriter(tmp_path / "a.mp4", 8) as writer:
        writer.append(frames)
        writer.append(frames[:, :16])
    assert (tmp_path / "a.mp4").read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match="nowhere"):
        video.write_video(tmp_path / "nowhere" / "a.mp4", frames, 8)


def test_iter_frames_at_a_rate(tmp_path: Path) -> None:
    path = timed(tmp_path / "a.mkv", [i / 30 for i in range(31)])
    found = list(video.iter_frames(path, fps=10, height=16, width=16))
    assert [round(time, 3) for time, _ in found] == [i / 10 for i in range(11)]
    assert numbers(np.stack([image for _, image in found])) == [(8 + 7 * 3 * i) % 240 // 7 - 1 for i in range(11)]


def test_errors_have_reasons(tmp_path: Path, clips: Path) -> None:
    (tmp_path / "empty.mp4").touch()
    (tmp_path / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(4000))
    (tmp_path / "folder.mp4").mkdir()
    for name, reason in [("absent.mp4", "not_found"), ("empty.mp4", "empty_file"), ("noise.mp4", "unreadable")]:
        with pytest.raises(VideoError) as caught:
            video.probe(tmp_path / name)
        assert caught.value.reason == reason and name in str(caught.value)
        again = pickle.loads(pickle.dumps(caught.value))  # noqa: S301 - errors cross from the decoding child
        assert (again.reason, str(again)) == (reason, str(caught.value))
    with pytest.raises(VideoError) as caught:
        video.probe(clips / "bikes.mp4", max_frames=100)
    assert caught.value.reason == "too_many_frames"
    with pytest.raises(VideoError) as caught:
        video.probe(clips / "bikes.mp4", max_pixels=1000)
    assert caught.value.reason == "too_large"


def test_a_video_cut_off_is_described_up_to_there(tmp_path: Path, clips: Path) -> None:
    whole = tmp_path / "whole.mkv"
    timed(whole, [i / 10 for i in range(100)])
    data = whole.read_bytes()
    broken = tmp_path / "broken.mkv"
    broken.write_bytes(data[: len(data) * 6 // 10])
    info = video.probe(broken)
    assert 20 < info.frames < 100


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


def test_manifest_of_odd_files(shared: Path) -> None:
    for name, size, rotation, mirrored in [
        ("ax_dolbyVision-hdr.MOV", (720, 1280), 90, False),
        ("decord_video_90.mov", (320, 568), 90, False),
        ("ax_sample_rotate_and_reflect.mp4", (720, 1080), 90, True),
        ("ax_bbb_800x640_768kbps_30fps_vp9.mp4", (1138, 640), 0, False),
    ]:
        info = video.probe(shared / "data" / "odd" / name)
        assert ((info.width, info.height), info.rotation, info.mirrored) == (size, rotation, mirrored), name
    info = video.probe(shared / "data" / "odd" / "decord_corrupted.mp4")
    assert info.frames == 28 and "2.700 s" in info.damage
