"""Videos as other programs and broken transmissions make them: clocks that lie, lost packets, pictures that change their shape."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

PACKET = 188
"""Bytes of a packet of a transport stream."""
Stamps = Callable[[int, int | None, int | None], tuple[int | None, int | None]]
"""Number of a packet in the order of decoding, its pts and dts -> those that are written."""


def moving(count: int, height: int = 64, width: int = 96, seed: int = 0) -> list[NDArray[np.uint8]]:
    """Pictures of a pattern that moves, each unlike all others."""
    generator = np.random.default_rng(seed)
    base = generator.integers(0, 255, (height // 8, width // 8 + 2 * count, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
    return [np.ascontiguousarray(base[:, 4 * i : 4 * i + width]) for i in range(count)]


def encode(
    path: Path,
    pictures: list[NDArray[np.uint8]],
    *,
    fps: int = 24,
    x264: str = "keyint=24:bframes=2",
    stamps: Stamps | None = None,
) -> Path:
    """Write H.264 in the container that the name ends with; `stamps` changes what packets are stamped with."""
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=fps)
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt, stream.options = "yuv420p", {"x264-params": f"threads=1:{x264}", "preset": "fast"}
        stream.codec_context.time_base = Fraction(1, fps)
        number = 0
        frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
        for each in [*frames, None]:
            if each is not None:
                each.pts, each.time_base = frames.index(each), Fraction(1, fps)
            for packet in stream.encode(each):
                if stamps is not None:
                    packet.pts, packet.dts = stamps(number, packet.pts, packet.dts)
                number += 1
                out.mux(packet)
    return path


def interlaced(count: int, height: int = 64, width: int = 96) -> list[NDArray[np.uint8]]:
    """Frames of two fields each, as a camera takes them: a bar that moves, the odd lines half a frame later than the even ones."""
    fields = []
    for number in range(2 * count):
        picture, left = np.full((height, width, 3), 40, np.uint8), 3 * number % (width - 16)
        picture[:, left : left + 16] = 220
        fields.append(picture)
    for early, late in zip(fields[::2], fields[1::2]):
        early[1::2] = late[1::2]
    return fields[::2]


def combing(picture: NDArray[np.uint8]) -> float:
    """How much each line differs from the mean of its neighbours: the comb of two fields in one picture."""
    lines = picture.astype(float)
    return float(np.abs(lines[1:-1] - (lines[:-2] + lines[2:]) / 2).mean())


def high_range(path: Path, code: NDArray[np.uint16], transfer: str, *, metadata: str = "") -> Path:
    """Write three grey HEVC frames of 10 bits and BT.2020 whose luma is `code` (H, W); metadata: more of x265's parameters."""
    height, width = code.shape
    params = f"lossless=1:log-level=none:colorprim=bt2020:transfer={transfer}:colormatrix=bt2020nc:range=limited{metadata}"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx265", rate=24)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p10le"
        stream.options = {"x265-params": params}
        for number in range(3):
            frame = av.VideoFrame(width, height, "yuv420p10le")
            for plane, values in zip(frame.planes, (code, None, None)):
                rows = np.full((plane.height, plane.line_size // 2), 512, np.uint16)
                if values is not None:
                    rows[:, :width] = values
                plane.update(rows.tobytes())
            frame.pts = number
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


def without_packets(source: Path, target: Path, lost: Callable[[int], bool]) -> Path:
    """Copy a transport stream without some of its packets."""
    data = source.read_bytes()
    packets = [data[at : at + PACKET] for at in range(0, len(data), PACKET)]
    target.write_bytes(b"".join(packet for number, packet in enumerate(packets) if not lost(number)))
    return target
