from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.analysis.scan import scan
from pipeline.analysis.shots import shots
from pipeline.config import CutConfig, FilterConfig
from pipeline.planning import filters
from tests.helpers.fakes import timed

LIMITS = {"max_frames": 10_000, "max_pixels": 4096 * 4096}


def test_scan_agrees_with_probe(clips: Path) -> None:
    for name in ("bikes.mp4", "carphone_distorted.mp4"):
        info, found = video.probe(clips / name), scan(clips / name, CutConfig(), **LIMITS)
        assert np.array_equal(found.times, info.times) and (found.width, found.height) == (info.width, info.height)
        assert found.seconds == info.seconds and found.codec == info.codec


def test_shots_of_a_real_video_and_margin(clips: Path) -> None:
    found = scan(clips / "bikes.mp4", CutConfig(), **LIMITS)
    edges = [0.0, 1.2, 3.04, 5.48, 7.48, 9.68, 10.0]
    assert shots(found, CutConfig()) == [pytest.approx(pair) for pair in zip(edges, edges[1:])]  # noqa: RUF007
    inner = shots(found, CutConfig(margin=0.2))
    assert (
        inner[0] == pytest.approx((0.0, 1.0))
        and inner[1] == pytest.approx((1.4, 2.84))
        and inner[-1] == pytest.approx((9.88, 10.0))
    )
    one = scan(clips / "carphone_pristine.mp4", CutConfig(), **LIMITS)
    assert len(shots(one, CutConfig())) == 1
    whole = scan(clips / "bikes.mp4", CutConfig(method="none"), **LIMITS)
    assert len(shots(whole, CutConfig(method="none"))) == 1 and not whole.cut.any()


def test_scores_belong_to_their_span(tmp_path: Path) -> None:
    """Frame i has grey 8 + 7 i and nothing moves but the level: luma is known, motion is 7, edges are none."""
    path = timed(tmp_path / "steps.mkv", [i / 10 for i in range(30)])
    found = scan(path, CutConfig(method="none"), **LIMITS)
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


def test_sharpness_falls_with_blur_and_motion_with_stillness(clips: Path) -> None:
    sharp = scan(clips / "carphone_pristine.mp4", CutConfig(), **LIMITS)
    coarse = scan(clips / "carphone_distorted.mp4", CutConfig(), **LIMITS)
    assert sharp.sharpness.mean() > 1.5 * coarse.sharpness.mean()
