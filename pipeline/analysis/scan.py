"""One pass over a whole video: what it holds, where its shots end, and measurements of every frame.

In:  a local video, decoded once in small pictures.
Out: `Scan`: true frame times, cuts, luma, motion, sharpness and text of each frame, black bars, fingerprints.

The content detector is PySceneDetect's ContentDetector, fed with frames from pipeline.video, so that there is one decoder.
TransNetV2 runs outside of the decoding child: the tiny pictures that it needs are handed out in blocks (`pictures`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

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
from pipeline.video import Device

SHORT_SIDE, LONGEST_SIDE = 72, 320
"""Size limits, in pixels, of the small picture on which detectors and scores are defined."""
PICTURE_HEIGHT, PICTURE_WIDTH, BLOCK = 27, 48, 100
"""Size of TransNetV2's pictures, and how many of them are handed out at once (400 kB)."""
_DETAILS = ("rotation", "mirrored", "pixel_aspect", "pixel_format", "colour", "variable_rate", "start", "dropped")
_EDGE = 16.0
"""Luma up to which a line of the small picture counts as black bar, for fingerprints."""


@dataclass(frozen=True)
class ScanOptions:
    """What a scan looks for, and the limits of the video."""

    cuts: CutConfig = field(default_factory=CutConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Says whether black bars are looked for, and up to which luma."""
    text: str = ""
    """File of the text detector's network; empty: text is not looked for."""
    max_frames: int = 1_000_000
    max_pixels: int = 8192 * 8192
    """Pixels of a stored frame."""


@dataclass(frozen=True)
class Scan:
    """The result of decoding a video once. Arrays have one entry per frame."""

    codec: str
    width: int
    """Pixels as shown; of the part that `crop` names."""
    height: int
    seconds: float
    damage: str
    crop: str
    """The part of the stored picture without black bars, `W:H:X:Y`; empty for all of it, or if bars are not looked for."""
    details: dict[str, Any]
    """Rotation, pixel aspect, colour, pixel format, variable rate, start: for the record."""
    times: NDArray[np.float64]
    cut: NDArray[np.float64]
    """1 where a new shot begins, -1 for a frame inside a gradual transition (it belongs to no shot), else 0."""
    luma: NDArray[np.float64]
    """Mean luma, 0 to 255."""
    motion: NDArray[np.float64]
    """Mean absolute luma difference to the previous frame (0 for the first), 0 to 255."""
    sharpness: NDArray[np.float64]
    """Variance of the Laplacian of the luma."""
    text: NDArray[np.float64]
    """Share of the picture that text covers, 0 to 1, of the frames that were examined; NaN for the others."""
    fingerprint: Fingerprint
    """The video's fingerprint, by which near copies are found."""
    inner_fingerprint: Fingerprint
    """The fingerprint of the picture without its black bars; empty if it has none."""

    ARRAYS: ClassVar[tuple[str, ...]] = ("times", "cut", "luma", "motion", "sharpness", "text")


def scan(
    path: str | Path,
    options: ScanOptions,
    *,
    beat: Callable[[], None] | None = None,
    pictures: Callable[[NDArray[np.uint8]], None] | None = None,
    device: Device | None = None,
) -> Scan:
    """Decode a video once, to its end. Raises VideoError as `pipeline.video.probe` does.

    beat: called for each decoded frame. pictures: takes blocks of the video's frames as uint8 (n, 27, 48, 3), for a detector that
    runs elsewhere. device: decodes; None is the CPU.
    """
    cuts, levels, text = _Cuts(options.cuts), _Levels(), _Text(options.text)
    letterbox, fingerprints, blocks = _Letterbox(options.filters), _Fingerprints(), _Blocks(pictures)
    measurements = (cuts, levels, text, letterbox, fingerprints, blocks)
    with video.Reader(path, max_pixels=options.max_pixels, beat=beat, device=device) as reader:

        def measured() -> Iterator[tuple[float, Any]]:
            for number, (time, frame) in enumerate(reader.frames()):
                small = video.thumbnail(frame, *_small(frame.height, frame.width))
                grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
                view = _View(number, time, frame, small, grey)
                for measurement in measurements:
                    measurement.add(view)
                yield time, frame

        info = video.describe(reader, measured(), max_frames=options.max_frames)
    blocks.flush()
    crop = letterbox.crop()
    width, height = _shown(info, crop, reader) if crop else (info.width, info.height)
    luma, motion, sharpness = levels.columns(info.frames)
    whole, inner = fingerprints.finish()
    return Scan(
        codec=info.codec,
        width=width,
        height=height,
        seconds=info.seconds,
        damage=info.damage,
        crop=crop,
        details={name: getattr(info, name) for name in _DETAILS},
        times=info.times,
        cut=cuts.column(info.frames),
        luma=luma,
        motion=motion,
        sharpness=sharpness,
        text=text.column(info.frames),
        fingerprint=whole,
        inner_fingerprint=inner,
    )


def _shown(info: video.VideoInfo, crop: str, reader: video.Reader) -> tuple[int, int]:
    """Return width and height as shown of a part of the stored picture."""
    width, height = (int(number) for number in crop.split(":")[:2])
    context = reader.stream.codec_context
    across, down = width / context.width, height / context.height
    if info.rotation in (90, 270):
        across, down = down, across
    return max(1, round(info.width * across)), max(1, round(info.height * down))


def _small(height: int, width: int) -> tuple[int, int]:
    scale = min(SHORT_SIDE / min(height, width), LONGEST_SIDE / max(height, width), 1.0)
    return max(2, round(height * scale)), max(2, round(width * scale))


# ---- the measurements ---------------------------------------------------------------------------------------------


class _View(NamedTuple):
    """A decoded frame with the small pictures that several measurements share."""

    number: int
    time: float
    frame: Any
    small: NDArray[np.uint8]
    """RGB (h, w, 3)."""
    grey: NDArray[np.uint8]
    """Luma of `small` (h, w)."""


class _Sampler:
    """Picks frames at least `seconds` apart, the first one included."""

    def __init__(self, seconds: float) -> None:
        self._seconds, self._next = seconds, 0.0

    def due(self, time: float) -> bool:
        if time < self._next:
            return False
        self._next = time + self._seconds
        return True


class _Cuts:
    """Frames with which a new shot begins, where the content detector is asked for."""

    def __init__(self, config: CutConfig) -> None:
        self._detector: ContentDetector | None = None
        if config.method == "content":
            self._detector = ContentDetector(threshold=config.threshold, min_scene_len=config.min_frames)
        self._begins: set[int] = set()

    def add(self, view: _View) -> None:
        if self._detector is not None:
            bgr = np.ascontiguousarray(view.small[..., ::-1])
            found = self._detector.process_frame(FrameTimecode(view.number, fps=25.0), bgr)
            self._begins.update(cut.frame_num for cut in found)

    def column(self, count: int) -> NDArray[np.float64]:
        cut = np.zeros(count)
        cut[[index for index in self._begins if index < count]] = 1.0
        return cut


class _Levels:
    """Luma, motion and sharpness of every frame."""

    def __init__(self) -> None:
        self._rows: list[tuple[float, float, float]] = []
        self._before: NDArray[np.float32] | None = None

    def add(self, view: _View) -> None:
        luma = view.grey.astype(np.float32)
        motion = 0.0
        if self._before is not None and self._before.shape == luma.shape:
            motion = float(cv2.absdiff(luma, self._before).mean())
        self._rows.append((float(luma.mean()), motion, float(cv2.Laplacian(view.grey, cv2.CV_32F).var())))
        self._before = luma

    def columns(self, count: int) -> tuple[NDArray[np.float64], ...]:
        return tuple(np.asarray(self._rows[:count], dtype=np.float64).T.copy())


class _Text:
    """Share of the picture that text covers, of frames EVERY seconds apart."""

    def __init__(self, network: str) -> None:
        self._detector = TextDetector(Path(network)) if network else None
        self._sampler = _Sampler(EVERY)
        self._covered: list[float] = []

    def add(self, view: _View) -> None:
        covered = math.nan
        if self._detector is not None and self._sampler.due(view.time):
            covered = self._detector.coverage(
                video.thumbnail(view.frame, *TextDetector.size(view.frame.height, view.frame.width))
            )
        self._covered.append(covered)

    def column(self, count: int) -> NDArray[np.float64]:
        return np.asarray(self._covered[:count], dtype=np.float64)


class _Letterbox:
    """Black bars at full size, where they are to be cut off."""

    def __init__(self, config: FilterConfig) -> None:
        self._bars = Bars(config.letterbox_luma) if config.letterbox == "crop" else None
        self._sampler = _Sampler(1 / RATE)

    def add(self, view: _View) -> None:
        if self._bars is not None and self._sampler.due(view.time):
            self._bars.add(video.luma(view.frame))

    def crop(self) -> str:
        return "" if self._bars is None else self._bars.crop()


class _Fingerprints:
    """The fingerprint of the whole picture, and of what black bars leave of it."""

    def __init__(self) -> None:
        self._whole, self._fine, self._bars = Fingerprinter(), Fingerprinter(FINE), Bars(_EDGE)
        self._sampler = _Sampler(1 / RATE)

    def add(self, view: _View) -> None:
        for side, fingerprinter in ((SIDE, self._whole), (FINE, self._fine)):
            square = cv2.resize(view.grey, (side, side), interpolation=cv2.INTER_AREA)
            fingerprinter.add(view.time, np.asarray(square, np.uint8).reshape(-1))
        if self._sampler.due(view.time):
            self._bars.add(view.grey)

    def finish(self) -> tuple[Fingerprint, Fingerprint]:
        part, fine = self._bars.shares(), self._fine.finish()
        inner = crop_fingerprint(fine, *part) if part else np.zeros((0, SIDE * SIDE), np.uint8)
        return self._whole.finish(), inner


class _Blocks:
    """TransNetV2's pictures of every frame, handed out in blocks."""

    def __init__(self, send: Callable[[NDArray[np.uint8]], None] | None) -> None:
        self._send = send
        self._block: list[NDArray[np.uint8]] = []

    def add(self, view: _View) -> None:
        if self._send is not None:
            self._block.append(video.thumbnail(view.frame, PICTURE_HEIGHT, PICTURE_WIDTH))
            if len(self._block) == BLOCK:
                self.flush()

    def flush(self) -> None:
        if self._send is not None and self._block:
            self._send(np.stack(self._block))
            self._block.clear()
