from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from pipeline import video
from pipeline.analysis.fingerprint import RATE
from pipeline.analysis.scan import Scan, ScanOptions, scan
from pipeline.analysis.shots import shots
from pipeline.config import CutConfig
from pipeline.video import VideoError
from tests.helpers.odd_videos import encode, moving
from tests.helpers.scans import only


def test_scan_agrees_with_probe(clips: Path) -> None:
    for name in ("bikes.mp4", "carphone_distorted.mp4"):
        info, found = video.probe(clips / name), only(scan(clips / name, ScanOptions()))
        assert np.array_equal(found.times, info.times) and (found.width, found.height) == (info.width, info.height)
        assert found.seconds == info.seconds and found.codec == info.codec


def test_sharpness_falls_with_blur_and_motion_with_stillness(clips: Path) -> None:
    sharp = only(scan(clips / "carphone_pristine.mp4", ScanOptions()))
    coarse = only(scan(clips / "carphone_distorted.mp4", ScanOptions()))
    assert sharp.sharpness.mean() > 1.5 * coarse.sharpness.mean()


@pytest.mark.parametrize("part", [50, 100, 249, 250])
def test_a_long_film_is_scanned_in_parts(clips: Path, part: int) -> None:
    """A film over the limit of frames was refused whole. Its parts hold all of it, each frame once."""
    path = clips / "bikes.mp4"
    options = ScanOptions(CutConfig(method="none"))
    whole, parts = only(scan(path, options)), list(scan(path, options, part=part))
    assert [len(found.times) for found in parts] == [min(part, 250 - at) for at in range(0, 250, part)]
    for name in Scan.ARRAYS:
        joined, at_once = np.concatenate([getattr(found, name) for found in parts]), getattr(whole, name)
        firsts = np.arange(0, 250, part) if name == "motion" else []  # a part's first frame has none before
        assert np.array_equal(np.delete(joined, firsts), np.delete(at_once, firsts), equal_nan=True), name
    spans = [span for found in parts for span in shots(found, options.cuts)]
    assert spans[0][0] == 0 and spans[-1][1] == whole.seconds
    assert all(before[1] == pytest.approx(after[0]) for before, after in pairwise(spans))
    prints = sum(len(found.fingerprint) for found in parts)
    assert abs(prints - len(whole.fingerprint)) <= len(parts) and prints == pytest.approx(RATE * whole.seconds, abs=len(parts))
    with pytest.raises(VideoError, match="max_frames = 240"):
        list(scan(path, ScanOptions(max_frames=240), part=part))


def test_a_film_that_breaks_off_keeps_the_parts_before(tmp_path: Path) -> None:
    path = encode(tmp_path / "cut.nut", moving(120, 48, 64), x264="keyint=12:bframes=0")
    content, options = path.read_bytes(), ScanOptions(CutConfig(method="none"))
    for part in range(20, 40):
        path.write_bytes(content[: part * len(content) // 40])
        whole = only(scan(path, options))
        if whole.damage:
            break
    assert whole.damage and len(whole.times) > 40
    for part in (7, 20, len(whole.times)):
        parts = list(scan(path, options, part=part))
        assert np.array_equal(np.concatenate([found.times for found in parts]), whole.times)
        assert [bool(found.damage) for found in parts] == [False] * (len(parts) - 1) + [True]
