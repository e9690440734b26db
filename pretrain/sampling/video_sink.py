"""Videos on their way to disk: each frame goes to its mp4 as soon as it is decoded, and hardly any is kept.

In:  frames of a batch of videos, a few at a time.
Out: one mp4 a video; the last frames (for the next clip to go on from) and the pictures of a contact sheet.
Called by: pretrain.generate.

Legend: B videos, T frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import torch
from torch import Tensor

from pipeline.video import VideoWriter
from pretrain.sampling.contact_sheet import columns


class Reel:
    """A batch of videos being written. A context manager: files appear when the block ends, and none after an error.

    frames: how many each will have. tail: how many of the last ones `last` gives back. Memory is that of `tail` and
    COLUMNS frames a video, and of the encoders, whatever the length.
    """

    def __init__(self, files: Sequence[Path], fps: float, frames: int, tail: int = 0) -> None:
        self._writers = [VideoWriter(file, fps) for file in files]
        self._columns = set(columns(frames))
        self._frames, self._tail = frames, tail
        self._stack = ExitStack()
        self._last: Tensor | None = None
        self.written = 0
        self.pictures: list[list[np.ndarray]] = [[] for _ in files]
        """The sheet's pictures of each video, so far."""

    def __enter__(self) -> Reel:
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
            self._last = seen[:, -self._tail :].clone()
        for writer, pictures, video in zip(self._writers, self.pictures, frames.numpy(), strict=True):
            writer.append(video)
            pictures += [image.copy() for at, image in enumerate(video, self.written) if at in self._columns]
        self.written += frames.shape[1]
        assert self.written <= self._frames

    @property
    def last(self) -> Tensor:
        """The last `tail` frames, uint8 (B, tail, H, W, 3)."""
        assert self._last is not None and self._last.shape[1] == self._tail
        return self._last
