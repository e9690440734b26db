"""DOC from pretrain/sampling/video_sink.py."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

COLUMNS = 9
"""Frames of a video on the contact sheet."""


def columns(frames: int) -> list[int]:
    """Numbers of the frames that a sheet shows of a video, evenly spaced."""
    return [int(at) for at in np.linspace(0, frames - 1, min(COLUMNS, frames)).round()]


def contact_sheet(videos: Sequence[np.ndarray], known: int = 0) -> Image.Image:
    """Return one row a video, uint8 (T, H, W, 3), of evenly spaced frames; the first `known` carry a green bar on top."""
    shown = columns(len(videos[0]))
    return sheet([[video[at] for at in shown] for video in videos], [at < known for at in shown])


def sheet(rows: Sequence[Sequence[np.ndarray]], given: Sequence[bool]) -> Image.Image:
    """Return rows of pictures uint8 (H, W, 3); columns that were given to the sampler carry a green bar on top."""
    height, width = rows[0][0].shape[:2]
    canvas = np.full((len(rows) * (height + 4), len(given) * (width + 4), 3), 255, dtype=np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            y, x = row * (height + 4) + 4, column * (width + 4)
            canvas[y : y + height, x : x + width] = picture
            if given[column]:
                canvas[y - 3 : y - 1, x : x + width] = (0, 160, 0)
    return Image.fromarray(canvas)
