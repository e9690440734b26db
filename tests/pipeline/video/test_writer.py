from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.video import VideoWriteError
from tests.helpers.fakes import numbered


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
    with pytest.raises(VideoWriteError, match=r"uint8 \(T, H, W, 3\)"):
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
    with pytest.raises(VideoWriteError, match="at least one frame"), video.VideoWriter(tmp_path / "a.mp4", 8):
        pass
    with pytest.raises(VideoWriteError, match="do not match"), video.VideoWriter(tmp_path / "a.mp4", 8) as writer:
        writer.append(frames)
        writer.append(frames[:, :16])
    assert (tmp_path / "a.mp4").read_bytes() == b"older" and len(list(tmp_path.iterdir())) == 1
    with pytest.raises(OSError, match="nowhere"):
        video.write_video(tmp_path / "nowhere" / "a.mp4", frames, 8)
