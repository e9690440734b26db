"""Made clips appear with their captions, go on after a stop, and keep their digest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.corpus.caption_table import CaptionTable
from pipeline.datasets.clip_folder import DataSetError, MadeClip, write
from pipeline.video import iter_frames

ABOUT = {"name": "test", "seed": 0}


def clips(shade: int = 0) -> Iterator[MadeClip]:
    for number in range(3):
        yield MadeClip(
            f"train/{number:06d}.mp4", f'clip "{number}", grey', np.full((4, 32, 32, 3), 40 * number + shade, np.uint8)
        )


def test_a_finished_folder_is_not_made_again_and_a_lost_clip_is(tmp_path: Path) -> None:
    def unasked() -> Iterator[MadeClip]:
        raise AssertionError("a clip is made")
        yield

    digest = write(tmp_path, clips(), 3, 8.0, ABOUT)
    assert write(tmp_path, unasked(), 3, 8.0, ABOUT) == digest
    (tmp_path / "train/000001.mp4").unlink()
    with pytest.raises(AssertionError, match="a clip is made"):
        write(tmp_path, unasked(), 3, 8.0, ABOUT)
    assert write(tmp_path, clips(), 3, 8.0, ABOUT) == digest
    assert (tmp_path / "train/000001.mp4").exists()


def test_a_stopped_folder_goes_on(tmp_path: Path) -> None:
    folder = tmp_path / "made"

    def stopped() -> Iterator[MadeClip]:
        yield next(clips())
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(folder, stopped(), 3, 8.0, ABOUT)
    assert not (folder / "dataset.json").exists()
    stamp = (folder / "train/000000.mp4").stat().st_mtime_ns
    digest = write(folder, clips(), 3, 8.0, ABOUT)
    assert (folder / "train/000000.mp4").stat().st_mtime_ns == stamp
    assert json.loads((folder / "dataset.json").read_text()) == {**ABOUT, "fps": 8.0, "digest": digest}
    assert write(tmp_path / "whole", clips(), 3, 8.0, ABOUT) == digest != write(tmp_path / "other", clips(1), 3, 8.0, ABOUT)
    table = CaptionTable.read(folder / "captions.csv")
    assert table.look_up(str(folder / "train/000002.mp4"))[0] == 'clip "2", grey'
    shown = [int(frame.mean()) for _, frame in iter_frames(folder / "train/000002.mp4")]
    assert len(shown) == 4 and all(abs(value - 80) <= 2 for value in shown)
    with pytest.raises(DataSetError, match="holds another data set"):
        write(folder, clips(), 3, 8.0, {"name": "test", "seed": 1})
