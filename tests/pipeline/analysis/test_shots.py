from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis.scan import ScanOptions, scan
from pipeline.analysis.shots import marks, shots
from pipeline.config import CutConfig
from tests.helpers.scans import only


def test_shots_of_a_real_video_and_margin(clips: Path) -> None:
    found = only(scan(clips / "bikes.mp4", ScanOptions()))
    edges = [0.0, 1.2, 3.04, 5.48, 7.48, 9.68, 10.0]
    assert shots(found, CutConfig()) == [pytest.approx(pair) for pair in zip(edges, edges[1:])]  # noqa: RUF007
    inner = shots(found, CutConfig(margin=0.2))
    assert (
        inner[0] == pytest.approx((0.0, 1.0))
        and inner[1] == pytest.approx((1.4, 2.84))
        and inner[-1] == pytest.approx((9.88, 10.0))
    )
    one = only(scan(clips / "carphone_pristine.mp4", ScanOptions()))
    assert len(shots(one, CutConfig())) == 1
    whole = only(scan(clips / "bikes.mp4", ScanOptions(CutConfig(method="none"))))
    assert len(shots(whole, CutConfig(method="none"))) == 1 and not whole.cut.any()


def test_marks() -> None:
    quiet = np.zeros((20, 2))
    assert not marks(quiet, 0.5, 4).any()
    quiet[5, 0] = 0.9
    assert np.flatnonzero(marks(quiet, 0.5, 4)).tolist() == [6], "the shot ends with picture 5, the next begins with 6"
    quiet[7] = 0.9
    assert np.flatnonzero(marks(quiet, 0.5, 4)).tolist() == [6], "a flash is one boundary"
    quiet[10:14, 1] = 0.7
    assert not marks(quiet, 0.5, 4)[7:].any(), "a slow change without a boundary is none"
    quiet[12, 0] = 0.6
    assert marks(quiet, 0.5, 4)[10:16].tolist() == [0, -1, -1, -1, 1, 0], "a dissolve belongs to no shot"
    assert marks(np.ones((3, 2)), 0.5, 4).tolist() == [0, -1, -1]
