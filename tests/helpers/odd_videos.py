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


def without_packets(source: Path, target: Path, lost: Callable[[int], bool]) -> Path:
    """Copy a transport stream without some of its packets."""
    data = source.read_bytes()
    packets = [data[at : at + PACKET] for at in range(0, len(data), PACKET)]
    target.write_bytes(b"".join(packet for number, packet in enumerate(packets) if not lost(number)))
    return target
