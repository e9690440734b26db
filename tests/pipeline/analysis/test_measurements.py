"""What ends a shot besides what pictures show, and what is known of damage: columns of a scan, shots, refusals."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from pipeline.analysis.scan import ScanOptions, scan
from pipeline.analysis.shots import shots
from pipeline.config import CutConfig, DecodeLimits, FilterConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.planning.filters import refusal, scores
from tests.helpers.odd_videos import encode, moving, without_packets
from tests.helpers.scans import only

METHODS = ("none", "content")


@pytest.fixture
def decoder() -> Iterator[DecoderProcess]:
    with DecoderProcess(DecodeLimits()) as process:
        yield process


@pytest.fixture
def joined(tmp_path: Path) -> Path:
    """Two recordings in one transport stream, whose clock begins anew and whose pictures are turned."""
    path = encode(tmp_path / "joined.ts", moving(48))
    path.write_bytes(path.read_bytes() + encode(tmp_path / "two.ts", moving(48, 96, 64)).read_bytes())
    return path


@pytest.mark.parametrize("method", METHODS)
def test_a_jump_of_the_clock_and_a_change_of_shape_end_a_shot(joined: Path, method: str) -> None:
    cuts = CutConfig(method=method)  # type: ignore[arg-type]
    found = only(scan(joined, ScanOptions(cuts)))
    assert np.flatnonzero(found.breaks).tolist() == [48] and found.cut[48] == 1
    assert [(round(begin, 2), round(end, 2)) for begin, end in shots(found, cuts)] == [(0, 2), (2, 4)]


def test_the_network_does_not_hide_breaks(joined: Path, decoder: DecoderProcess) -> None:
    found = only(decoder.scan(joined, CutConfig(method="transnet"), FilterConfig()))
    assert found.cut[48] == 1


def test_a_frame_stamped_far_too_late_freezes_nothing(tmp_path: Path) -> None:
    path = encode(tmp_path / "late.mkv", moving(48), stamps=lambda n, p, d: ((p or 0) + 24 * 300 if n == 20 else p, d))
    cuts = CutConfig()
    found = only(scan(path, ScanOptions(cuts)))
    assert sum(end - begin for begin, end in shots(found, cuts)) < 2.1 and len(found.times) == 48


def test_frames_decoded_with_errors_are_scored_and_refused(tmp_path: Path) -> None:
    whole = encode(tmp_path / "whole.ts", moving(96, 240, 320), x264="keyint=48:scenecut=0:bframes=0")
    count = whole.stat().st_size // 188
    broken = without_packets(whole, tmp_path / "broken.ts", lambda number: number == count // 4)
    good, bad = (only(scan(path, ScanOptions(CutConfig(method="none")))) for path in (whole, broken))
    assert "corrupt" not in scores(good, 0, 4) and refusal(scores(good, 0, 4), FilterConfig(), 9)[0] == ""
    first, second = scores(bad, 0, 2), scores(bad, 2, 4)
    assert 0.3 < first["corrupt"] < 0.9 and "corrupt" not in second
    reason, detail = refusal(first, FilterConfig(), 9)
    assert reason == "damaged" and "pipeline.filters.max_corrupt is 0.05" in detail
    assert refusal(first, FilterConfig(max_corrupt=1), 9)[0] == ""


def test_frames_without_a_place_in_the_clock_are_scored_and_refused(tmp_path: Path) -> None:
    path = encode(
        tmp_path / "twice.mkv",
        moving(48),
        x264="bframes=0",
        stamps=lambda n, p, d: (p if n % 4 else (p or 1) - 1, (d or 0) - 2),
    )
    found = only(scan(path, ScanOptions(CutConfig(method="none"))))
    share = scores(found, 0, 1)["dropped"]
    assert 0.15 < share < 0.3 and found.details["dropped"] == round(share * 48)
    reason, detail = refusal(scores(found, 0, 1), FilterConfig(), 9)
    assert reason == "damaged" and "pipeline.filters.max_dropped is 0.1" in detail
