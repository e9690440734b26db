"""High dynamic range to what an ordinary screen shows: PQ and HLG to BT.709, by FFmpeg's `scale` (libswscale's colour management).

In:  a frame whose stream names PQ (SMPTE ST 2084) or HLG (ARIB STD-B67) as its transfer function.
Out: uint8 RGB (H, W, 3), BT.709.

- PQ is taken as mastered for 1,000 cd/m^2, which most is; brighter light is clipped. It is converted to HLG of that peak first.
- HLG, in its own nominal range, is mapped to BT.709 with the perceptual intent, BT.2020 colours that BT.709 lacks included.

What a file says of its mastering display is not used: it may begin, end and change in the middle of a file, and what is decoded after a
seek would not be what is decoded from the beginning (law 1 of the design). Each pixel is mapped by itself.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from threading import Lock
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

TRANSFERS: Mapping[int, str] = {16: "pq", 18: "hlg"}
"""FFmpeg's numbers of the transfer functions that are mapped."""
_NAMES = {"pq": "smpte2084", "hlg": "arib-std-b67"}
_BLOCK = (128, 512)
"""Rows and columns of the pictures that go through the filter. Pixels of any picture are brought into this shape, since the filter
computes its table anew for each shape, which takes seconds."""
_EXACT = "flags=bitexact+accurate_rnd+full_chroma_int:sws_dither=none"


class ToneMap:
    """The mapping of one transfer function, as a filter of libavfilter. Its first use computes a table, for some seconds."""

    def __init__(self, transfer: str) -> None:
        self._lock = Lock()
        self._graph = av.filter.Graph()
        rows, columns = _BLOCK
        add = self._graph.add
        name = _NAMES[transfer]
        chain = [
            add(
                "buffer", f"video_size={columns}x{rows}:pix_fmt=rgb48le:time_base=1/1:pixel_aspect=1/1:colorspace=gbr:range=pc"
            ),
            add("setparams", f"color_trc={name}:color_primaries=bt2020"),
        ]
        if transfer == "pq":
            chain += [
                add("scale", f"out_transfer=arib-std-b67:intent=relative_colorimetric:{_EXACT}"),
                add("format", "rgb48le"),
            ]
        chain += [
            add("scale", f"out_transfer=bt709:out_primaries=bt709:intent=perceptual:{_EXACT}"),
            add("format", "rgb24"),
            add("buffersink"),
        ]
        self._graph.link_nodes(*chain).configure()
        self._source: Any = chain[0]
        self._sink: Any = chain[-1]

    def apply(self, coded_HW3: NDArray[np.uint16]) -> NDArray[np.uint8]:
        """Return uint8 RGB of 16-bit RGB as coded: full range, BT.2020 primaries, this map's transfer function."""
        shape, block = coded_HW3.shape, (*_BLOCK, 3)
        size = int(np.prod(block))
        flat = coded_HW3.reshape(-1)
        mapped = np.empty(flat.size, np.uint8)
        with self._lock:
            for first in range(0, flat.size, size):
                part = flat[first : first + size]
                padded = np.zeros(size, np.uint16)
                padded[: part.size] = part
                self._source.push(av.VideoFrame.from_ndarray(padded.reshape(block), format="rgb48le"))
                mapped[first : first + part.size] = self._sink.pull().to_ndarray().reshape(-1)[: part.size]
        return mapped.reshape(shape)


@cache
def tone_map(transfer: str) -> ToneMap:
    """Return the process's map of a transfer function, `pq` or `hlg`."""
    return ToneMap(transfer)
