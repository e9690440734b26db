"""Fingerprints: what is seen around each eighth of a second, whatever the frame rate."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from pipeline import video
from pipeline.analysis.fingerprint import FINE, RATE, SIDE, Fingerprint, Fingerprinter, crop_fingerprint
from tests.helpers.near_copies import grey


def test_fingerprint_is_what_is_seen_around_each_eighth_of_a_second(clips: Path) -> None:
    found = grey(clips / "bikes.mp4")
    assert found.shape == (10 * RATE, 64)
    image = video.read_frames(clips / "bikes.mp4", [3.5], 272, 640)[0].mean(axis=2)
    rough = image.reshape(8, 34, 8, 80).mean(axis=(1, 3)).reshape(-1)
    assert np.corrcoef(rough, found[28])[0, 1] > 0.98


def test_the_part_of_a_fine_fingerprint_is_the_fingerprint_of_the_part() -> None:
    """Also where the part's edges cut a fine line in two."""
    rng = np.random.default_rng(0)
    smooth = cv2.resize(rng.uniform(40, 220, (5, 5)), (240, 160), interpolation=cv2.INTER_CUBIC).clip(20, 235)
    for top, left in ((0, 0), (37, 0), (11, 53)):
        frame = np.zeros((160 + 2 * top, 240 + 2 * left))
        frame[top : top + 160, left : left + 240] = smooth
        fine = np.rint(cv2.resize(frame, (FINE, FINE), interpolation=cv2.INTER_AREA)).astype(np.uint8).reshape(1, -1)
        height, width = frame.shape
        found = crop_fingerprint(fine, (top / height, (top + 160) / height), (left / width, (left + 240) / width))
        wanted = cv2.resize(smooth, (SIDE, SIDE), interpolation=cv2.INTER_AREA).reshape(-1)
        assert np.abs(found[0] - wanted).max() <= 6 and np.abs(found[0] - wanted).mean() <= 1.5


def test_a_fingerprint_depends_on_times_not_on_the_number_of_frames() -> None:
    """Motion without end at 50, 25, 12.5 and 8 frames a second, and at changing intervals: nearly one fingerprint."""

    def made(times: list[float]) -> Fingerprint:
        fingerprinter = Fingerprinter()
        for time in times:
            wave = np.sin(2 * np.pi * (0.4 * time + np.arange(SIDE * SIDE) / 40))
            fingerprinter.add(time, np.rint(120 + 100 * wave).astype(np.uint8))
        return fingerprinter.finish()

    reference = made([i / 50 for i in range(200)]).astype(float)
    assert reference.shape == (32, 64)
    uneven = np.cumsum([0.0, *np.random.default_rng(0).uniform(0.02, 0.1, 80)])
    for times in (
        [i / 25 for i in range(100)],
        [i / 12.5 for i in range(50)],
        [i / 8 for i in range(32)],
        [*uneven[uneven < 4]],
    ):
        other = made([float(t) for t in times]).astype(float)
        assert len(other) == 32 and np.abs(other - reference)[1:-1].max() <= 6
    held = made([0.0, 2.0, 2.04])
    assert (held[:15] == held[0]).all() and (held[16] != held[0]).any(), "what stands still is not blended over seconds"
    assert made([0.0]).shape == (1, 64) and made([]).shape == (0, 64)
