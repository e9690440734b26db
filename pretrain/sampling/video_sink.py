"""Videos on their way to disk: each frame is encoded as soon as it is decoded, and hardly any is kept; and their contact sheet.

In:  frames of a batch of videos, a few at a time.
Out: one mp4 file per video; the last frames (which the next clip continues) and the pictures of a contact sheet.

Legend: B videos, T frames, H x W pixels, C = 3 colors.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipeline.video import VideoWriter

SHEET_COLUMNS = 9
"""Most frames of a video on a contact sheet."""
MARGIN = 4
"""Pixels between the pictures of a contact sheet."""
GREEN = (0, 160, 0)


class VideoSink:
    """A batch of videos being written. A context manager: the files appear when the block ends, and none after an error.

    frames: length of each video. tail: how many of the latest frames `last` returns. Memory is that of `tail` and SHEET_COLUMNS
    frames per video, and of the encoders, whatever the length.
    """

    def __init__(self, files: Sequence[Path], fps: float, frames: int, tail: int = 0) -> None:
        self._writers = [VideoWriter(file, fps) for file in files]
        self._on_sheet = set(sheet_frames(frames))
        self._frames, self._tail = frames, tail
        self._stack = ExitStack()
        self._last: Tensor | None = None
        self.written = 0
        self.pictures: list[list[np.ndarray]] = [[] for _ in files]
        """The pictures of each video for the contact sheet, so far."""

    def __enter__(self) -> VideoSink:
        with ExitStack() as stack:
            for writer in self._writers:
                stack.enter_context(writer)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stack.__exit__(kind, error, trace)

    def append(self, frames_BTHWC: Tensor) -> None:
        """Write the next frames, uint8 (B, T, H, W, 3)."""
        frames = frames_BTHWC.cpu()
        if self._tail:
            seen = frames if self._last is None else torch.cat((self._last, frames), dim=1)
            self._last = seen[:, -self._tail :].clone()  # a view would keep all frames in memory
        for writer, pictures, video in zip(self._writers, self.pictures, frames.numpy(), strict=True):
            writer.append(video)
            pictures += [image.copy() for at, image in enumerate(video, self.written) if at in self._on_sheet]
        self.written += frames.shape[1]
        assert self.written <= self._frames

    @property
    def last(self) -> Tensor:
        """The latest `tail` frames, uint8 (B, tail, H, W, 3)."""
        assert self._last is not None and self._last.shape[1] == self._tail
        return self._last


def sheet_frames(frames: int) -> list[int]:
    """Return the numbers of the frames that a contact sheet shows of a video of `frames` frames, evenly spaced."""
    return [int(at) for at in np.linspace(0, frames - 1, min(SHEET_COLUMNS, frames)).round()]


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], given: Sequence[bool], unmarked: Collection[int] = ()) -> Image.Image:
    """Return one picture of rows of equally many pictures, uint8 (H, W, 3).

    given: by column, whether the frame was given to the sampler; such a column is marked with a green bar above it.
    unmarked: rows of samples that were given none.
    """
    height, width = rows[0][0].shape[:2]
    canvas = np.full((len(rows) * (height + MARGIN), len(given) * (width + MARGIN), 3), 255, dtype=np.uint8)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            y, x = row * (height + MARGIN) + MARGIN, column * (width + MARGIN)
            canvas[y : y + height, x : x + width] = picture
            if given[column] and row not in unmarked:
                canvas[y - 3 : y - 1, x : x + width] = GREEN
    return Image.fromarray(canvas)
