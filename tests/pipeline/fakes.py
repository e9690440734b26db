"""Made-up videos whose frames tell their number, for the pipeline's tests."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray


def numbered(count: int, height: int = 48, width: int = 64) -> NDArray[np.uint8]:
    """Frames whose grey level tells their number: frame i is filled with 8 + 7 i (mod 240)."""
    levels = (8 + 7 * np.arange(count)) % 240
    return np.broadcast_to(levels[:, None, None, None], (count, height, width, 3)).astype(np.uint8)


def timed(
    path: Path, times: list[float], *, rotation: int = 0, offset: float = 0.0, size: tuple[int, int] = (48, 64), keys: int = 10
) -> Path:
    """Write a lossless-ish video whose frame i (grey 8 + 7 i) is shown at times[i]."""
    frames = numbered(len(times), *size)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = size
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "1", "preset": "ultrafast", "bf": "0", "g": str(keys), "sc_threshold": "0"}
        stream.codec_context.time_base = Fraction(1, 1000)
        stream.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for image, time in zip(frames, times):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = round(1000 * (time + offset)), Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def numbers(frames: np.ndarray) -> list[int]:
    return [round((float(frame.mean()) - 8) / 7) for frame in frames]
