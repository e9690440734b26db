"""How much of a picture is covered by text: burnt-in subtitles, titles, tickers.

In:  a small RGB picture.
Out: the share of its area, 0 to 1.

The network is PP-OCRv4's detector (a DBNet of 4.7 MB, from PyPI's rapidocr-onnxruntime), run by OpenCV on one core. Text is only
located, not read, so its script does not matter.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

EVERY = 0.5
"""Seconds between the pictures that are examined."""
SHORT_SIDE, LONGEST_SIDE = 288, 960
"""Size limits of those pictures, pixels."""
_TEXT = 0.5
"""Probability above which a pixel counts as text."""
_MEAN, _SPREAD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)


@cache
def text_network() -> str:
    """Return the path of the network, verified, for the child to open. Raises WeightsError saying how to fix it."""
    from tokenizer.evaluation import pretrained  # loads torch, which the child does not need

    return str(pretrained.file("text"))


class TextDetector:
    """The network. Not thread-safe."""

    def __init__(self, path: Path) -> None:
        cv2.setNumThreads(1)
        self._network = cv2.dnn.readNetFromONNX(str(path))

    @staticmethod
    def size(height: int, width: int) -> tuple[int, int]:
        """Return the height and width to resize a picture of this shape to: multiples of 32, as the network requires."""
        scale = min(SHORT_SIDE / min(height, width), LONGEST_SIDE / max(height, width))
        return max(32, round(height * scale / 32) * 32), max(32, round(width * scale / 32) * 32)

    def coverage(self, picture_HW3: NDArray[np.uint8]) -> float:
        """Return the share of the picture's area that text covers."""
        bgr = picture_HW3[..., ::-1].astype(np.float32) / 255
        self._network.setInput(np.ascontiguousarray(((bgr - _MEAN) / _SPREAD).transpose(2, 0, 1)[None]))
        return float((self._network.forward() > _TEXT).mean())
