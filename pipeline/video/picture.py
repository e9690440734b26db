"""From a decoded frame to the picture as shown: rotated, resized, cropped, in RGB.

In:  a frame of `av`, and for the pixel aspect its stream.
Out: uint8 arrays (H, W, 3), or (H, W) for luma.
"""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray

from pipeline.video.tone_map import TRANSFERS, tone_map

Frames = NDArray[np.uint8]
_RESIZE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
_NAMED_COLORSPACES = {int(c) for c in Colorspace}
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}


class Orientation(NamedTuple):
    """How a stored picture is rotated for display: first transposed, then mirrored."""

    transpose: bool
    flip_x: bool
    flip_y: bool

    def apply(self, image_HW3: Frames) -> Frames:
        """Return the picture as shown, without copying it."""
        if self.transpose:
            image_HW3 = image_HW3.transpose(1, 0, 2)
        if self.flip_x:
            image_HW3 = image_HW3[:, ::-1]
        if self.flip_y:
            image_HW3 = image_HW3[::-1]
        return image_HW3


_UPRIGHT = Orientation(False, False, False)
_TURNS = (_UPRIGHT, Orientation(True, True, False), Orientation(False, True, True), Orientation(True, False, True))
ROTATIONS: Mapping[Orientation, tuple[int, bool]] = {
    Orientation(False, False, False): (0, False),
    Orientation(True, True, False): (90, False),
    Orientation(False, True, True): (180, False),
    Orientation(True, False, True): (270, False),
    Orientation(False, True, False): (0, True),
    Orientation(True, False, False): (90, True),
    Orientation(False, False, True): (180, True),
    Orientation(True, True, True): (270, True),
}
"""Degrees clockwise and whether mirrored, by orientation."""


def luma(frame: av.VideoFrame) -> Frames:
    """Return uint8 (H, W): the stored picture's luma at full size, 0 to 255 whatever the range of the file."""
    grey = frame.reformat(format="gray", src_color_range=_range(frame), dst_color_range=ColorRange.JPEG, threads=1)
    return np.asarray(grey.to_ndarray(), dtype=np.uint8)


def thumbnail(frame: av.VideoFrame, height: int, width: int) -> Frames:
    """Return uint8 (height, width, 3): the stored picture scaled to a small size, for cut detection and scores."""
    transfer = transfer_of(frame)
    if transfer:
        return _mapped(frame, height, width, Interpolation.AREA, transfer)
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation=Interpolation.AREA, threads=1)
    return np.ascontiguousarray(small.to_ndarray())


def picture(stream: Any, frame: av.VideoFrame, height: int | None, width: int | None) -> Frames:
    """Return uint8 (height, width, 3): upright, resized to cover that shape, centre-cropped. None for both: the shown size."""
    orientation = orientation_of(frame)
    shown_width, shown_height = shown_size(frame, orientation, pixel_aspect(stream, frame))
    if height is None or width is None:
        height, width = max(1, round(shown_height)), max(1, round(shown_width))
    scale = max(height / shown_height, width / shown_width)
    covered_height = max(height, round(shown_height * scale))
    covered_width = max(width, round(shown_width * scale))
    # The stored picture is resized before it is rotated, so its sides swap under a transposing orientation.
    stored = (covered_width, covered_height) if orientation.transpose else (covered_height, covered_width)
    transfer = transfer_of(frame)
    if transfer:
        image = _mapped(frame, *stored, _RESIZE, transfer)
    else:
        image = np.asarray(_rgb(frame, *stored, "rgb24", _RESIZE).to_ndarray(), dtype=np.uint8)
    image = orientation.apply(image)
    top, left = (covered_height - height) // 2, (covered_width - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _rgb(frame: av.VideoFrame, height: int, width: int, pixels: str, interpolation: Interpolation) -> av.VideoFrame:
    return frame.reformat(
        width=width,
        height=height,
        format=pixels,
        src_colorspace=_matrix(frame),
        interpolation=interpolation,
        src_color_range=_range(frame),
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )


def _mapped(frame: av.VideoFrame, height: int, width: int, interpolation: Interpolation, transfer: str) -> Frames:
    """Return uint8 (height, width, 3) of a frame in high dynamic range, for an ordinary screen."""
    return tone_map(transfer).apply(
        np.asarray(_rgb(frame, height, width, "rgb48le", interpolation).to_ndarray(), dtype=np.uint16)
    )


def transfer_of(frame: av.VideoFrame) -> str:
    """Return `pq` or `hlg` for a frame in high dynamic range, else an empty text."""
    return TRANSFERS.get(int(frame.color_trc), "")


def _matrix(frame: av.VideoFrame) -> int:
    if int(frame.colorspace) in _NAMED_COLORSPACES:
        return int(frame.colorspace)
    return int(Colorspace.BT2020 if transfer_of(frame) else Colorspace.ITU601)


def _range(frame: av.VideoFrame) -> int:
    full = int(frame.color_range) == int(ColorRange.JPEG) or str(frame.format.name).startswith("yuvj")
    return int(ColorRange.JPEG) if full else int(ColorRange.MPEG)


def colour_name(frame: av.VideoFrame) -> str:
    """Return `matrix/range` as the file names them, `unspecified` if it names no matrix; in high dynamic range `/pq` or `/hlg` too."""
    matrix = _MATRICES.get(int(frame.colorspace), "unspecified")
    spread: Literal["full", "limited"] = "full" if _range(frame) == int(ColorRange.JPEG) else "limited"
    transfer = transfer_of(frame)
    return f"{matrix}/{spread}/{transfer}" if transfer else f"{matrix}/{spread}"


def pixel_aspect(stream: Any, frame: av.VideoFrame) -> float:
    """Return the width of a pixel over its height; 1 if the file says nothing sensible."""
    ratio = stream.sample_aspect_ratio
    value = float(ratio) if ratio else 1.0
    # Ratios beyond these are broken headers, not pictures.
    return value if 0.1 <= value <= 10 else 1.0


def shown_size(frame: av.VideoFrame, orientation: Orientation, aspect: float) -> tuple[float, float]:
    """Return width and height as shown, pixels."""
    width, height = (frame.width * aspect, float(frame.height)) if aspect >= 1 else (float(frame.width), frame.height / aspect)
    return (height, width) if orientation.transpose else (width, height)


def frame_seconds(frame: av.VideoFrame) -> float:
    """Return for how long the file says that a frame is shown; 0 if it does not say."""
    return float(frame.duration * (frame.time_base or Fraction(0))) if frame.duration else 0.0


def orientation_of(frame: av.VideoFrame) -> Orientation:
    """Return the display matrix (x' = a x + c y, y' = b x + d y), reduced to quarter turns and mirrors."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV has no name for some side data (multi-view HEVC) and then reads none of it, but it still gives the angle.
        return _TURNS[-int(frame.rotation) % 360 // 90]
    if matrix is None:
        return _UPRIGHT
    a, b, _, c, d = np.frombuffer(memoryview(matrix), dtype=np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return Orientation(False, a < 0, d < 0)
    return Orientation(True, c < 0, b < 0)
