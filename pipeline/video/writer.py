"""An H.264 mp4, written a few frames at a time.

In:  uint8 (T, H, W, 3).
Out: a file that appears under its name once it is whole.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np

from pipeline.video.picture import Frames


class VideoWriteError(ValueError):
    """Frames that cannot be written as one video; the message names the file."""


class VideoWriter:
    """Writes an H.264 yuv420p mp4 that browsers play, a few frames at a time; memory holds only the encoder's own frames.

    A context manager: the file gets its name when the block ends without an error, and is .NAME.part beside it until then; an
    error leaves nothing and keeps an older file of that name. An odd height or width is padded by repeating the edge (yuv420p
    needs even sides). Raises OSError if the file cannot be written, VideoWriteError for no frame at all.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path, self.frames = Path(path), 0
        self._part = self.path.with_name(f".{self.path.name}.part")
        self._rate = Fraction(fps).limit_denominator(1001)
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        self._part.touch()  # libav opens late, and its errors name no file
        self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "faststart"})
        return self

    def append(self, frames: Frames) -> None:
        """Append frames, uint8 (T, H, W, 3). Raises VideoWriteError for another type, or another shape than the first's."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise VideoWriteError(f"{self.path}: a video takes uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
        padded = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.height, self._stream.width = padded.shape[1:3]
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "17", "preset": "veryfast"}
            self._stream.codec_context.thread_count = 1
        if padded.shape[1:3] != (self._stream.height, self._stream.width):
            raise VideoWriteError(f"{self.path}: frames of {frames.shape[1]}x{frames.shape[2]} do not match the first ones")
        for image in padded:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = self.frames
            frame.time_base = 1 / self._rate
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self.frames:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None and self.frames:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)
        if kind is None and not self.frames:
            raise VideoWriteError(f"{self.path}: a video takes at least one frame")


def write_video(path: str | Path, frames: Frames, fps: float) -> None:
    """Write uint8 (T, H, W, 3) as one mp4 (`VideoWriter`)."""
    with VideoWriter(path, fps) as writer:
        writer.append(frames)
