from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline import video
from pipeline.analysis.scan import ScanOptions, scan


def test_scan_agrees_with_probe(clips: Path) -> None:
    for name in ("bikes.mp4", "carphone_distorted.mp4"):
        info, found = video.probe(clips / name), scan(clips / name, ScanOptions())
        assert np.array_equal(found.times, info.times) and (found.width, found.height) == (info.width, info.height)
        assert found.seconds == info.seconds and found.codec == info.codec


def test_sharpness_falls_with_blur_and_motion_with_stillness(clips: Path) -> None:
    sharp = scan(clips / "carphone_pristine.mp4", ScanOptions())
    coarse = scan(clips / "carphone_distorted.mp4", ScanOptions())
    assert sharp.sharpness.mean() > 1.5 * coarse.sharpness.mean()
