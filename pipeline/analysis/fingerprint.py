"""Fingerprints of videos, by which near copies are found: small grey pictures at a fixed rate, whatever the video's own rate.

In:  grey levels of frames as they come, with their times.
Out: `Fingerprint`, one row per 1 / RATE seconds; also of a part of the picture.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Fingerprint = NDArray[np.uint8]
"""(pictures, SIDE * SIDE) grey levels: row k is what is seen around k / RATE seconds."""
RATE = 8
"""Pictures per second of a fingerprint."""
SIDE = 8
"""Side of a fingerprint's picture, pixels."""
FINE = 32
"""Side of the pictures from which a part is cut once it is known what the black bars leave, pixels."""
_RAMP = 1 / RATE
"""Seconds before a frame during which the picture changes over to it; a frame that is shown for longer is still before that."""
_SLIVER = 0.2
"""Share of a fine line that must be lit for the line to count."""


class Fingerprinter:
    """Makes a fingerprint of frames as they come, by their times alone.

    A player holds each frame until the next one, so a copy with half the frames shows the same motion in longer steps, later on
    average. The fingerprint is therefore of the motion in between: linear from frame to frame, averaged over the 1 / RATE
    seconds around a tick.

    side: side of the square pictures, pixels.
    """

    def __init__(self, side: int = SIDE) -> None:
        self._pixels = side * side
        self._done: list[NDArray[np.uint8]] = []
        self._sum = np.zeros(self._pixels)
        self._weight = 0.0
        self._last: tuple[float, NDArray[np.float64]] | None = None

    def add(self, time: float, picture: NDArray[np.uint8]) -> None:
        """Take the frame that is shown from `time` on (rising), side * side grey levels."""
        after = picture.astype(np.float64)
        if self._last is not None:
            begin, before = self._last
            ramp = min(time - begin, _RAMP)
            self._stretch(begin, time - ramp, before, before)
            self._stretch(time - ramp, time, before, after)
        self._last = (time, after)

    def _stretch(self, begin: float, end: float, before: NDArray[np.float64], after: NDArray[np.float64]) -> None:
        """Spread a linear change over the ticks that it touches."""
        at = begin
        while at < end:
            until = min(end, (len(self._done) + 0.5) / RATE)
            if until > at:
                middle = ((at + until) / 2 - begin) / (end - begin)
                self._sum += (until - at) * (before + middle * (after - before))
                self._weight += until - at
            if until < end:
                self._close()
            at = until

    def _close(self) -> None:
        self._done.append(np.rint(self._sum / self._weight).astype(np.uint8))
        self._sum, self._weight = np.zeros(self._pixels), 0.0

    def finish(self) -> Fingerprint:
        """Return the fingerprint up to the last frame, (pictures, side * side)."""
        if self._last is not None and len(self._done) / RATE <= self._last[0] + 1e-6:
            if self._weight < 1e-6:
                self._sum, self._weight = self._last[1], 1.0
            self._close()
        return np.asarray(self._done, dtype=np.uint8).reshape(-1, self._pixels)


def crop_fingerprint(fine: NDArray[np.uint8], rows: tuple[float, float], columns: tuple[float, float]) -> Fingerprint:
    """Return the fingerprint of a part of the picture: (n, FINE * FINE) to (n, SIDE * SIDE).

    rows, columns: where the part begins and ends, as shares of the whole. Everything outside of it is black.
    """
    down, across = _shares(*rows), _shares(*columns)
    pictures = fine.reshape(-1, FINE, FINE).astype(np.float64)
    found = down @ pictures @ across.T
    return np.rint(found).clip(0, 255).astype(np.uint8).reshape(-1, SIDE * SIDE)


def _shares(begin: float, end: float) -> NDArray[np.float64]:
    """Return (SIDE, FINE): how much each fine line adds to each line of the part's fingerprint."""
    fine = np.arange(FINE + 1) / FINE
    edges = begin + (end - begin) * np.arange(SIDE + 1) / SIDE
    overlap = np.minimum(edges[1:, None], fine[None, 1:]) - np.maximum(edges[:-1, None], fine[None, :-1])
    # A fine line cut by the part's edge has all its light from inside, since outside is black; a sliver of one is only noise.
    lit = (np.minimum(end, fine[1:]) - np.maximum(begin, fine[:-1])) * FINE
    weight = overlap.clip(0, None) * (lit > _SLIVER)
    shares: NDArray[np.float64] = weight / weight.sum(axis=1, keepdims=True) / lit.clip(_SLIVER, None)
    return shares
