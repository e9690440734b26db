"""Strips become clips, and people are held out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.datasets import weizmann
from pipeline.datasets.clip_folder import DataSetError


def test_strips_of_made_people(tmp_path: Path) -> None:
    actions = tmp_path / "strips" / "actions"
    for person in (0, 7):
        (actions / "3").mkdir(parents=True, exist_ok=True)
        strip = np.concatenate([np.full((64, 64, 3), 50 * frame, np.uint8) for frame in range(4)], axis=1)
        Image.fromarray(strip).save(actions / "3" / f"{person * 8}.jpg", quality=95)
    assert weizmann.strips(tmp_path) == weizmann.strips(actions), "a folder above will do"
    made = {clip.name: clip for clip in weizmann.clips(weizmann.strips(actions))}
    assert set(made) == {"train/3-0.mp4", "test/3-56.mp4"}
    frames = made["test/3-56.mp4"].frames
    assert frames.shape == (4, 64, 64, 3) and [round(float(frame.mean()) / 50) for frame in frames] == [0, 1, 2, 3]
    (actions / "3" / "9.jpg").write_bytes(b"no picture")
    with pytest.raises(DataSetError, match=r"9\.jpg: cannot be read as a picture"):
        list(weizmann.clips(weizmann.strips(actions)))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataSetError, match="no strips"):
        weizmann.strips(tmp_path / "empty")


def test_the_shared_strips(shared: Path) -> None:
    paths = weizmann.strips(shared / "data" / "weizmann64" / "actions")
    made = list(weizmann.clips(paths[:3]))
    assert len(paths) == 72 and all(clip.frames.shape[0] >= 16 for clip in made)
