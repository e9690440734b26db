"""Frames go to disk as they come; what stays in memory does not grow with the video."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.video import iter_frames
from pretrain.sampling.video_sink import SHEET_COLUMNS, VideoSink, contact_sheet, sheet_frames


def test_pieces_make_the_files_of_the_whole(tmp_path: Path) -> None:
    grey = torch.arange(40, dtype=torch.uint8) * 6
    frames = torch.stack((grey, 255 - grey)).view(2, 40, 1, 1, 1).expand(2, 40, 16, 24, 3).contiguous()
    files = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    with VideoSink(files, 8, 40, tail=5) as sink:
        for begin, end in ((0, 1), (1, 5), (5, 9), (9, 40)):
            sink.append(frames[:, begin:end])
            if end >= 5:
                assert torch.equal(sink.last, frames[:, end - 5 : end])
        assert not files[0].exists()
    for file, video, pictures in zip(files, frames.numpy(), sink.pictures, strict=True):
        back = np.stack([image for _, image in iter_frames(file)])
        assert back.shape == video.shape and np.abs(back.astype(int) - video).max() <= 2
        assert np.array_equal(np.stack(pictures), video[sheet_frames(40)])


def test_memory_does_not_grow_with_the_video(tmp_path: Path) -> None:
    clip = torch.zeros(1, 32, 16, 16, 3, dtype=torch.uint8)
    picture = 16 * 16 * 3
    with VideoSink([tmp_path / "a.mp4"], 8, 20 * 32, tail=4) as sink:
        for _ in range(20):
            sink.append(clip)
            assert sink.last.untyped_storage().nbytes() == 4 * picture, "a view would keep the whole clip"
    assert all(image.base is None and image.nbytes == picture for image in sink.pictures[0])
    assert len(sink.pictures[0]) == SHEET_COLUMNS
    assert sum(1 for _ in iter_frames(tmp_path / "a.mp4")) == 640


def test_an_error_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(KeyError), VideoSink([tmp_path / "a.mp4", tmp_path / "b.mp4"], 8, 9) as sink:
        sink.append(torch.zeros(2, 4, 16, 16, 3, dtype=torch.uint8))
        raise KeyError
    assert not list(tmp_path.iterdir())
    (tmp_path / "b.mp4").mkdir()
    with (
        pytest.raises(OSError, match="No such file"),
        VideoSink([tmp_path / "a.mp4", tmp_path / "b.mp4" / "no" / "c.mp4"], 8, 9),
    ):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["b.mp4"]


def test_contact_sheet_marks_the_given_frames() -> None:
    video = np.zeros((17, 8, 8, 3), dtype=np.uint8)
    shown = sheet_frames(17)
    sheet = np.asarray(contact_sheet([[video[at] for at in shown]] * 2, [at < 5 for at in shown]))
    assert sheet.shape == (24, 9 * 12, 3)
    green = (sheet == (0, 160, 0)).all(2)
    assert green[1].any() and green[1, :36].sum() == 24 and not green[1, 36:].any()
    again = np.asarray(contact_sheet([[video[at] for at in shown]] * 3, [at < 5 for at in shown], unmarked=[1]))
    green = (again == (0, 160, 0)).all(2)
    assert green[1].any() and not green[12:24].any() and green[25].any(), "what was sampled from text alone was given no frame"
