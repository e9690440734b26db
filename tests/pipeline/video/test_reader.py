from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.video import VideoError
from tests.helpers.fakes import timed


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
