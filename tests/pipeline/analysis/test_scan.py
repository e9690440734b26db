from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.analysis.scan import ScanOptions, scan
from pipeline.analysis.shots import shots
from pipeline.config import CutConfig


def test_scan_agrees_with_probe(clips: Path) -> None:
    for name in ("bikes.mp4", "carphone_distorted.mp4"):
        info, found = video.probe(clips / name), scan(clips / name, ScanOptions())
        assert np.array_equal(found.times, info.times) and (found.width, found.height) == (info.width, info.height)
        assert found.seconds == info.seconds and found.codec == info.codec


def test_shots_of_a_real_video_and_margin(clips: Path) -> None:
    found = scan(clips / "bikes.mp4", ScanOptions())
    edges = [0.0, 1.2, 3.04, 5.48, 7.48, 9.68, 10.0]
    assert shots(found, CutConfig()) == [pytest.approx(pair) for pair in zip(edges, edges[1:])]  # noqa: RUF007
    inner = shots(found, CutConfig(margin=0.2))
    assert (
        inner[0] == pytest.approx((0.0, 1.0))
        and inner[1] == pytest.approx((1.4, 2.84))
        and inner[-1] == pytest.approx((9.88, 10.0))
    )
    one = scan(clips / "carphone_pristine.mp4", ScanOptions())
    assert len(shots(one, CutConfig())) == 1
    whole = scan(clips / "bikes.mp4", ScanOptions(CutConfig(method="none")))
    assert len(shots(whole, CutConfig(method="none"))) == 1 and not whole.cut.any()


def test_sharpness_falls_with_blur_and_motion_with_stillness(clips: Path) -> None:
    sharp = scan(clips / "carphone_pristine.mp4", ScanOptions())
    coarse = scan(clips / "carphone_distorted.mp4", ScanOptions())
    assert sharp.sharpness.mean() > 1.5 * coarse.sharpness.mean()
