"""DOC from pipeline/planning/near_index.py."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

RATE = 8
"""Pictures a second of a print."""


SIDE = 8
"""Pixels a side of a print's picture."""


FINE = 32
"""Pixels a side of the pictures from which a part is cut, once it is known what the black bars leave."""


_SLIVER = 0.2


Print = NDArray[np.uint8]
"""(pictures, SIDE * SIDE) grey levels."""


_RAMP = 1 / RATE
"""Seconds before a frame in which the picture passes over to it; a frame that stands longer stands still before."""


class Printer:
    """Makes a print of frames as they come, by their times alone: entry k is what is seen around k / RATE seconds.

    A player holds each frame until the next; a copy with half the frames shows the same motion in longer steps, later on the
    average. So the print is of the motion between: linear from frame to frame, averaged over the 1 / RATE seconds around a tick.
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

    def finish(self) -> Print:
        """Return the print up to the last frame."""
        if self._last is not None and len(self._done) / RATE <= self._last[0] + 1e-6:
            if self._weight < 1e-6:
                self._sum, self._weight = self._last[1], 1.0
            self._close()
        return np.asarray(self._done, dtype=np.uint8).reshape(-1, self._pixels)


def inner(fine: NDArray[np.uint8], rows: tuple[float, float], columns: tuple[float, float]) -> Print:
    """Return the print of a part of the picture: (n, FINE * FINE) to (n, SIDE * SIDE).

    rows, columns: where the part begins and ends, as shares of the whole. Outside of it all is black.
    """
    down, across = _shares(*rows), _shares(*columns)
    pictures = fine.reshape(-1, FINE, FINE).astype(np.float64)
    found = down @ pictures @ across.T
    return np.rint(found).clip(0, 255).astype(np.uint8).reshape(-1, SIDE * SIDE)


def _shares(begin: float, end: float) -> NDArray[np.float64]:
    """(SIDE, FINE): how much each fine line adds to each line of the part's print."""
    fine = np.arange(FINE + 1) / FINE
    edges = begin + (end - begin) * np.arange(SIDE + 1) / SIDE
    overlap = np.minimum(edges[1:, None], fine[None, 1:]) - np.maximum(edges[:-1, None], fine[None, :-1])
    # A fine line that the part's edge cuts has all its light from inside, for outside is black; a sliver of one says nothing.
    lit = (np.minimum(end, fine[1:]) - np.maximum(begin, fine[:-1])) * FINE
    weight = overlap.clip(0, None) * (lit > _SLIVER)
    shares: NDArray[np.float64] = weight / weight.sum(axis=1, keepdims=True) / lit.clip(_SLIVER, None)
    return shares
