"""Scores of a span, and the thresholds that refuse it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis.scan import ScanOptions, scan
from pipeline.config import CutConfig, FilterConfig
from pipeline.planning import filters
from tests.helpers.fakes import timed
from tests.helpers.scans import only


def test_scores_belong_to_their_span(tmp_path: Path) -> None:
    """Frame i has grey 8 + 7 i and nothing moves but the level: luma is known, motion is 7, edges are none."""
    path = timed(tmp_path / "steps.mkv", [i / 10 for i in range(30)])
    found = only(scan(path, ScanOptions(CutConfig(method="none"))))
    scores = filters.scores(found, 1.0, 2.0)
    assert scores["luma"] == pytest.approx(8 + 7 * np.arange(10, 20).mean(), abs=2)
    assert scores["motion"] == pytest.approx(7, abs=0.6) and scores["sharpness"] < 0.5
    assert filters.scores(found, 0.0, 0.05)["motion"] == 0.0, "one frame does not move"


@pytest.mark.parametrize(
    ("config", "frames", "reason"),
    [
        (FilterConfig(), 17, ""),
        (FilterConfig(min_luma=60), 17, "black"),
        (FilterConfig(min_motion=3), 17, "static"),
        (FilterConfig(min_motion=3), 1, ""),
        (FilterConfig(min_sharpness=11), 17, "blurred"),
    ],
)
def test_thresholds(config: FilterConfig, frames: int, reason: str) -> None:
    found, detail = filters.refusal({"luma": 50.0, "motion": 2.0, "sharpness": 10.0}, config, frames)
    assert found == reason and bool(detail) == bool(reason)
