"""Shots of a video: from the cuts of a `Scan`, or from TransNetV2's probabilities, to spans in seconds."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.analysis.scan import Scan
from pipeline.config import CutConfig


def shots(found: Scan, cuts: CutConfig) -> list[tuple[float, float]]:
    """Return (begin, end) in seconds of each shot, less `margin` on each side of a cut; the ends of the video have no margin."""
    spans: list[tuple[float, float]] = []
    first = float(found.times[0])
    begin: float | None = first
    for time, mark in zip(found.times[found.cut != 0].tolist(), found.cut[found.cut != 0].tolist()):
        if begin is not None and time > begin:
            spans.append((begin, time))
        begin = time if mark > 0 else None
    if begin is not None:
        spans.append((begin, found.seconds))
    result = []
    for begin, end in spans:
        inner_begin = begin + (cuts.margin if begin > first else 0.0)
        inner_end = end - (cuts.margin if end < found.seconds else 0.0)
        if inner_end > inner_begin:
            result.append((inner_begin, inner_end))
    return result


def marks(probabilities: NDArray[np.float64], threshold: float, min_frames: int) -> NDArray[np.float64]:
    """Return 1 where a new shot begins, -1 for pictures inside a gradual transition (which belong to no shot), else 0.

    probabilities: (n, 2), that a picture is the boundary and that it lies in a transition (pipeline/analysis/transnet.py).
    A boundary is a run of pictures above the threshold in either column, at least one of them in the first: the shot ends with
    the run's first picture, the next begins after its last. One that follows another within min_frames is ignored (a flash).
    """
    above = np.concatenate(([False], probabilities.max(axis=1) > threshold, [False]))
    found = np.zeros(len(probabilities))
    first, after = np.flatnonzero(above[1:] & ~above[:-1]), np.flatnonzero(~above[1:] & above[:-1])
    previous = -min_frames
    for begin, end in zip(first.tolist(), after.tolist()):
        if begin + 1 - previous < min_frames or probabilities[begin:end, 0].max() <= threshold:
            continue
        found[begin + 1 : end] = -1
        if end < len(found):
            found[end] = 1
        previous = end
    return found
