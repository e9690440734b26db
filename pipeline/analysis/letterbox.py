"""Black bars beside the picture: detected over the frames of a video, so that they are cut off before it is resized.

In:  full-size luma of frames spread over a video.
Out: the rectangle that holds the picture, as `W:H:X:Y` in stored pixels (ffmpeg's crop filter reads the same).

A row or column belongs to the picture if, in more than one of fifty frames that show anything, some part of it is lighter than
black. So a dark scene does not narrow the picture, a flash does not widen it, and a bar that holds subtitles is kept.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

_SHARE = 0.02
"""Share of the frames in which a line must be lit to count as picture."""
_FEWEST = 3
"""Fewest frames that show something; with fewer, nothing is cut off."""
_BLEND = 8
"""Neighbouring pixels that are averaged, so that one pixel of noise does not count as picture."""
_THINNEST = 0.01
"""Bars thinner than this share of the side are kept: dirt at the edge of a film scan, or a decoder's padding."""
_LEAST = 0.3
"""Least share of a side that the picture must take; less is not a letterbox but a scene in the dark."""


class Bars:
    """Collects frames of one video. black: luma up to which a pixel counts as black."""

    def __init__(self, black: float) -> None:
        self._black = black
        self._rows: NDArray[np.int64] = np.zeros(0, np.int64)
        self._columns: NDArray[np.int64] = np.zeros(0, np.int64)
        self._count = 0
        self._mixed = False

    def add(self, luma_HW: NDArray[np.uint8]) -> None:
        """Take the luma of one frame, 0 to 255 (full range)."""
        height, width = luma_HW.shape
        if self._count and (len(self._rows), len(self._columns)) != (height, width):
            self._mixed = True
        if self._mixed:
            return
        across = cv2.resize(luma_HW, (max(1, width // _BLEND), height), interpolation=cv2.INTER_AREA).max(axis=1)
        down = cv2.resize(luma_HW, (width, max(1, height // _BLEND)), interpolation=cv2.INTER_AREA).max(axis=0)
        if not (across > self._black).any():
            return
        if not self._count:
            self._rows, self._columns = np.zeros(height, np.int64), np.zeros(width, np.int64)
        self._rows += across > self._black
        self._columns += down > self._black
        self._count += 1

    def crop(self) -> str:
        """Return `W:H:X:Y`, rounded inwards to even numbers; empty if the picture fills the frame, changes its size or is unclear."""
        found = self._part(2)
        if found is None:
            return ""
        (top, bottom), (left, right) = found
        return f"{right - left}:{bottom - top}:{left}:{top}"

    def shares(self) -> tuple[tuple[float, float], tuple[float, float]] | None:
        """Return where the picture begins and ends, as shares of height and width; None in the cases in which `crop` is empty."""
        found = self._part(1)
        if found is None:
            return None
        (top, bottom), (left, right) = found
        height, width = len(self._rows), len(self._columns)
        return (top / height, bottom / height), (left / width, right / width)

    def _part(self, grain: int) -> tuple[tuple[int, int], tuple[int, int]] | None:
        if self._mixed or self._count < _FEWEST:
            return None
        rows, columns = _extent(self._rows, self._count, grain), _extent(self._columns, self._count, grain)
        height, width = rows[1] - rows[0], columns[1] - columns[0]
        if (height, width) == (len(self._rows), len(self._columns)):
            return None
        if height < _LEAST * len(self._rows) or width < _LEAST * len(self._columns):
            return None
        return rows, columns


def _extent(lit: NDArray[np.int64], count: int, grain: int) -> tuple[int, int]:
    """Return the picture's first line and the one past its last, rounded inwards to `grain` (2: lines share chroma in pairs)."""
    size = len(lit)
    places = np.flatnonzero(lit > _SHARE * count)
    if not len(places):
        return 0, size
    least = max(2, math.ceil(_THINNEST * size))
    first, last = int(places[0]), int(places[-1]) + 1
    begin = first + first % grain if first >= least else 0
    end = last - last % grain if size - last >= least else size
    return begin, end
