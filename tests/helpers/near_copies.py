"""Copies of videos as they are met: cut, smaller, with fewer frames, with black bars."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline import video
from pipeline.analysis.fingerprint import Fingerprint
from pipeline.analysis.scan import ScanOptions, scan
from pipeline.config import CutConfig
from tests.helpers.scans import only

THRESHOLD = 0.9


def grey(path: Path) -> Fingerprint:
    return only(scan(path, ScanOptions(CutConfig(method="none")))).fingerprint


Bars = tuple[int, int, int, int]


def fingerprints(path: Path) -> list[Fingerprint]:
    """The fingerprint of a video, and where it has black bars that of the picture between them."""
    found = only(scan(path, ScanOptions(CutConfig(method="none"))))
    return [one for one in (found.fingerprint, found.inner_fingerprint) if len(one)]


def copy(path: Path, out: Path, *, height: int = 180, skip: float = 0.8, step: int = 1, bars: Bars = (0, 0, 0, 0)) -> Path:
    """Cut the beginning off, make it smaller, keep every step-th frame, add bars (top, bottom, left, right), encode it anew."""
    info = video.probe(path)
    fps = round(info.fps)
    width = round(height * info.width / info.height / 2) * 2
    frames = [image for time, image in video.iter_frames(path, fps=fps, height=height, width=width) if time >= skip]
    top, bottom, left, right = bars
    padded = np.pad(np.stack(frames[::step]), ((0, 0), (top, bottom), (left, right), (0, 0)))
    video.write_video(out, padded, fps / step)
    return out
