from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.video import VideoError
from tests.helpers.fakes import timed
from tests.helpers.odd_videos import encode, moving, without_packets


def test_probe_counts_what_decodes(clips: Path) -> None:
    info = video.probe(clips / "bikes.mp4")
    assert (info.frames, info.width, info.height, info.codec) == (250, 640, 272, "h264")
    assert info.seconds == pytest.approx(10.0) and info.fps == pytest.approx(25.0)
    assert not info.variable_rate and info.damage == "" and info.times[0] == 0


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


def test_containers_that_stamp_the_order_of_decoding_show_all_frames_in_order(tmp_path: Path) -> None:
    pictures = moving(50)
    for name in ("a.avi", "b.mkv"):
        info = video.probe(encode(tmp_path / name, pictures, x264="keyint=25:bframes=3"))
        assert (info.frames, info.dropped) == (50, 0)
        assert info.times == pytest.approx(np.arange(50) / 24, abs=2e-3), name
    shown = list(video.iter_frames(tmp_path / "a.avi"))
    for (_, image), picture in zip(shown, pictures, strict=True):
        assert np.abs(image.astype(int) - picture).mean() < 12, "each picture at its own time"


@pytest.mark.parametrize("name", ["joined", "late", "shape"])
def test_a_clock_that_jumps_loses_no_frame_and_freezes_none(tmp_path: Path, name: str) -> None:
    path = encode(tmp_path / "one.ts", moving(48))
    if name == "late":
        path = encode(tmp_path / "one.mkv", moving(48), stamps=lambda n, p, d: ((p or 0) + 24 * 300 if n == 20 else p, d))
    else:
        size = (96, 64) if name == "shape" else (64, 96)
        other = encode(tmp_path / "two.ts", moving(48, *size, seed=1))
        path.write_bytes(path.read_bytes() + other.read_bytes())
    info = video.probe(path)
    assert info.frames == (48 if name == "late" else 96) and info.dropped == 0
    assert info.seconds == pytest.approx(info.frames / 24, abs=0.1) and np.diff(info.times).max() < 0.1


def test_frames_after_a_loss_are_corrupt_until_the_next_key_frame(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.ts", moving(96, 240, 320), x264="keyint=48:scenecut=0:bframes=0")
    count = whole.stat().st_size // 188
    broken = without_packets(whole, tmp_path / "broken.ts", lambda number: number == count // 4)
    with video.Reader(whole) as reader:
        assert not any(reader.corrupt for _ in reader.frames())
    with video.Reader(broken) as reader:
        seen = [(reader.corrupt, frame.key_frame) for _, frame in reader.frames()]
    corrupt, keys = [each for each, _ in seen], [number for number, (_, key) in enumerate(seen) if key]
    first = corrupt.index(True)
    assert len(keys) == 2 and 5 < first < keys[1] - 10 and all(corrupt[first : keys[1]]) and not any(corrupt[keys[1] :])


def test_a_still_has_no_length_whatever_the_file_says(tmp_path: Path) -> None:
    """An .avif may claim seconds for its only frame; clips of a frozen picture were made of it."""
    import av

    plain = timed(tmp_path / "a.mkv", [0.0])
    with av.open(str(plain)) as before, av.open(str(tmp_path / "still.mkv"), "w") as after:
        stream = after.add_stream_from_template(before.streams.video[0])
        for packet in before.demux(video=0):
            if packet.size:
                packet.stream, packet.duration = stream, 9000
                after.mux(packet)
    assert video.probe(tmp_path / "still.mkv").seconds <= 0.04
