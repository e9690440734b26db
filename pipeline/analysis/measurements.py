"""What a scan measures of every frame of a video: each measurement takes the frames one by one and gives a column of the `Scan`.

In:  `View`s: decoded frames with the small pictures that the measurements share.
Out: float64 columns with an entry per frame, fingerprints, black bars, blocks of tiny pictures.

The content detector is PySceneDetect's ContentDetector, fed with frames from pipeline.video, so that there is one decoder.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from pipeline import video
from pipeline.analysis.fingerprint import FINE, RATE, SIDE, Fingerprint, Fingerprinter, crop_fingerprint
from pipeline.analysis.letterbox import Bars
from pipeline.analysis.text_detector import EVERY, TextDetector
from pipeline.config import CutConfig, FilterConfig

PICTURE_HEIGHT, PICTURE_WIDTH, BLOCK = 27, 48, 100
"""Size of TransNetV2's pictures, and how many of them are handed out at once (400 kB)."""
EDGE = 16.0
"""Luma up to which a line of the small picture counts as black bar, for fingerprints."""


class View(NamedTuple):
    """A decoded frame with the small pictures that several measurements share."""

    number: int
    time: float
    frame: Any
    small: NDArray[np.uint8]
    """RGB (h, w, 3)."""
    grey: NDArray[np.uint8]
    """Luma of `small` (h, w)."""
    jumps: int
    """Jumps of the file's clock so far."""
    corrupt: bool
    """Whether it was decoded with errors, or is built on such frames."""

    @property
    def shape(self) -> tuple[int, int]:
        """Stored height and width."""
        return int(self.frame.height), int(self.frame.width)


class Sampler:
    """Picks frames at least `seconds` apart, the first one included."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    def due(self, time: float) -> bool:
        """Whether the frame at this time is picked."""
        if time < self._next:
            return False
        self._next = time + self._seconds
        return True


class Cuts:
    """Frames with which a new shot begins, where the content detector is asked for."""

    def __init__(self, config: CutConfig) -> None:
        self._config = config
        self._detector: ContentDetector | None = None
        self._shape: tuple[int, ...] = ()
        self._begins: set[int] = set()

    def add(self, view: View) -> None:
        """Take the next frame."""
        if self._config.method == "content":
            if self._detector is None or view.small.shape != self._shape:  # it compares pictures of one shape
                self._detector = ContentDetector(threshold=self._config.threshold, min_scene_len=self._config.min_frames)
                self._shape = view.small.shape
            bgr = np.ascontiguousarray(view.small[..., ::-1])
            found = self._detector.process_frame(FrameTimecode(view.number, fps=25.0), bgr)
            self._begins.update(cut.frame_num for cut in found)

    def column(self, count: int) -> NDArray[np.float64]:
        """Return the column of the first `count` frames."""
        cut = np.zeros(count)
        cut[[index for index in self._begins if index < count]] = 1.0
        return cut


class Breaks:
    """Frames with which a new shot begins whatever they show: the file's clock jumps, or pictures change their shape."""

    def __init__(self) -> None:
        self._begins: list[float] = []
        self._before: tuple[int, tuple[int, int]] | None = None

    def add(self, view: View) -> None:
        """Take the next frame."""
        now = view.jumps, view.shape
        self._begins.append(float(self._before is not None and now != self._before))
        self._before = now

    def column(self, count: int) -> NDArray[np.float64]:
        """Return the column of the first `count` frames."""
        return np.asarray(self._begins[:count])


class Corrupt:
    """Frames that were decoded with errors."""

    def __init__(self) -> None:
        self._found: list[float] = []

    def add(self, view: View) -> None:
        """Take the next frame."""
        self._found.append(float(view.corrupt))

    def column(self, count: int) -> NDArray[np.float64]:
        """Return the column of the first `count` frames."""
        return np.asarray(self._found[:count])


class Levels:
    """Luma, motion and sharpness of every frame."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float, float]] = []
        self._before: NDArray[np.float32] | None = None

    def add(self, view: View) -> None:
        """Take the next frame."""
        luma = view.grey.astype(np.float32)
        motion = 0.0
        if self._before is not None and self._before.shape == luma.shape:
            motion = float(cv2.absdiff(luma, self._before).mean())
        self._rows.append((float(luma.mean()), motion, float(cv2.Laplacian(view.grey, cv2.CV_32F).var())))
        self._before = luma

    def columns(self, count: int) -> tuple[NDArray[np.float64], ...]:
        """Return the three columns of the first `count` frames."""
        return tuple(np.asarray(self._rows[:count], dtype=np.float64).T.copy())


class Text:
    """Share of the picture that text covers, of frames EVERY seconds apart."""

    def __init__(self, network: str) -> None:
        self._detector = TextDetector(Path(network)) if network else None
        self._sampler = Sampler(EVERY)
        self._covered: list[float] = []

    def add(self, view: View) -> None:
        """Take the next frame."""
        covered = math.nan
        if self._detector is not None and self._sampler.due(view.time):
            covered = self._detector.coverage(
                video.thumbnail(view.frame, *TextDetector.size(view.frame.height, view.frame.width))
            )
        self._covered.append(covered)

    def column(self, count: int) -> NDArray[np.float64]:
        """Return the column of the first `count` frames."""
        return np.asarray(self._covered[:count], dtype=np.float64)


class Letterbox:
    """Black bars at full size, where they are to be cut off."""

    def __init__(self, config: FilterConfig) -> None:
        self._bars = Bars(config.letterbox_luma) if config.letterbox == "crop" else None
        self._sampler = Sampler(1 / RATE)

    def add(self, view: View) -> None:
        """Take the next frame."""
        if self._bars is not None and self._sampler.due(view.time):
            self._bars.add(video.luma(view.frame))

    def crop(self) -> str:
        """Return what is left between the bars, `W:H:X:Y`; empty for all."""
        return "" if self._bars is None else self._bars.crop()


class Fingerprints:
    """The fingerprint of the whole picture, and of what black bars leave of it."""

    def __init__(self) -> None:
        self._whole, self._fine, self._bars = Fingerprinter(), Fingerprinter(FINE), Bars(EDGE)
        self._sampler = Sampler(1 / RATE)

    def add(self, view: View) -> None:
        """Take the next frame."""
        for side, fingerprinter in ((SIDE, self._whole), (FINE, self._fine)):
            square = cv2.resize(view.grey, (side, side), interpolation=cv2.INTER_AREA)
            fingerprinter.add(view.time, np.asarray(square, np.uint8).reshape(-1))
        if self._sampler.due(view.time):
            self._bars.add(view.grey)

    def finish(self) -> tuple[Fingerprint, Fingerprint]:
        """Return both fingerprints; the second is empty if there are no bars."""
        part, fine = self._bars.shares(), self._fine.finish()
        inner = crop_fingerprint(fine, *part) if part else np.zeros((0, SIDE * SIDE), np.uint8)
        return self._whole.finish(), inner


class Blocks:
    """TransNetV2's pictures of every frame, handed out in blocks."""

    def __init__(self, send: Callable[[NDArray[np.uint8]], None] | None) -> None:
        self._send = send
        self._block: list[NDArray[np.uint8]] = []

    def add(self, view: View) -> None:
        """Take the next frame."""
        if self._send is not None:
            self._block.append(video.thumbnail(view.frame, PICTURE_HEIGHT, PICTURE_WIDTH))
            if len(self._block) == BLOCK:
                self.flush()

    def flush(self) -> None:
        """Hand out what is left."""
        if self._send is not None and self._block:
            self._send(np.stack(self._block))
            self._block.clear()
