"""One pass over a whole video: what it holds, where its shots end, and measurements of every frame.

In:  a local video, decoded once in small pictures.
Out: `Scan`s, one for each part of a million frames: true frame times, cuts, luma, motion, sharpness and text of each frame, black bars, fingerprints.

TransNetV2 runs outside of the decoding child: the tiny pictures that it needs are handed out in blocks (`pictures`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any, ClassVar

import cv2
import numpy as np
from numpy.typing import NDArray

from pipeline import video
from pipeline.analysis.fingerprint import Fingerprint
from pipeline.analysis.measurements import Blocks, Breaks, Corrupt, Cuts, Fingerprints, Letterbox, Levels, Text, View
from pipeline.config import CutConfig, DecodeLimits, FilterConfig
from pipeline.video import Device, VideoError

SHORT_SIDE, LONGEST_SIDE = 72, 320
"""Size limits, in pixels, of the small picture on which detectors and scores are defined."""
PART = 1_000_000
"""Frames of a part of a video: nine hours at 30 a second. A shot ends with its part."""
_DETAILS = ("rotation", "mirrored", "pixel_aspect", "pixel_format", "colour", "variable_rate", "start", "dropped")


@dataclass(frozen=True)
class ScanOptions:
    """What a scan looks for, and the limits of the video."""

    cuts: CutConfig = field(default_factory=CutConfig)
    filters: FilterConfig = field(default_factory=FilterConfig)
    """Says whether black bars are looked for, and up to which luma."""
    text: str = ""
    """File of the text detector's network; empty: text is not looked for."""
    max_frames: int = DecodeLimits().max_frames
    max_pixels: int = 8192 * 8192
    """Pixels of a stored frame."""


@dataclass(frozen=True)
class Scan:
    """The result of decoding a video, or a part of a long one, once. Arrays have one entry per frame."""

    codec: str
    width: int
    """Pixels as shown; of the part that `crop` names."""
    height: int
    seconds: float
    """Time just after the last frame, from the video's first one."""
    damage: str
    crop: str
    """The part of the stored picture without black bars, `W:H:X:Y`; empty for all of it, or if bars are not looked for."""
    details: dict[str, Any]
    """Rotation, pixel aspect, colour, pixel format, variable rate, start: for the record."""
    times: NDArray[np.float64]
    cut: NDArray[np.float64]
    """1 where a new shot begins, -1 for a frame inside a gradual transition (it belongs to no shot), else 0."""
    breaks: NDArray[np.float64]
    """1 where the file's clock jumps or pictures change their shape, which ends a shot whatever they show, else 0."""
    luma: NDArray[np.float64]
    """Mean luma, 0 to 255."""
    motion: NDArray[np.float64]
    """Mean absolute luma difference to the previous frame (0 for the first), 0 to 255."""
    sharpness: NDArray[np.float64]
    """Variance of the Laplacian of the luma."""
    text: NDArray[np.float64]
    """Share of the picture that text covers, 0 to 1, of the frames that were examined; NaN for the others."""
    corrupt: NDArray[np.float64]
    """1 for a frame that was decoded with errors, or after such a frame and before the next key frame, else 0."""
    fingerprint: Fingerprint
    """The video's fingerprint, by which near copies are found."""
    inner_fingerprint: Fingerprint
    """The fingerprint of the picture without its black bars; empty if it has none."""

    ARRAYS: ClassVar[tuple[str, ...]] = ("times", "cut", "breaks", "luma", "motion", "sharpness", "text", "corrupt")


def scan(
    path: str | Path,
    options: ScanOptions,
    *,
    beat: Callable[[], None] | None = None,
    pictures: Callable[[NDArray[np.uint8]], None] | None = None,
    device: Device | None = None,
    part: int = PART,
) -> Iterator[Scan]:
    """Decode a video once, to its end, and yield what each part of `part` frames holds; all but films of many hours are one part.

    Times go on from part to part; measurements, black bars and fingerprints begin anew, so that memory does not grow with the film.
    beat: called for each decoded frame. pictures: takes blocks of a part's frames as uint8 (n, 27, 48, 3), for a detector that runs
    elsewhere. device: decodes; None is the CPU. Raises VideoError as `pipeline.video.probe` does.
    """
    with video.Reader(path, max_pixels=options.max_pixels, beat=beat, device=device) as reader:
        frames = reader.frames()
        ahead: list[tuple[float, Any]] = []
        seen = dropped = 0
        while True:
            measures = _Measures(options, pictures)
            shown = measures.taken(reader, islice(chain(ahead, frames), part))
            info = video.describe(reader, shown, max_frames=options.max_frames, seen=seen)
            ahead = []
            if info.frames == part and not info.damage:
                try:
                    ahead = list(islice(frames, 1))
                except VideoError as error:
                    if error.reason != "damaged":
                        raise
                    info = replace(info, damage=str(error))
            yield measures.finish(reader, replace(info, dropped=info.dropped - dropped))
            if not ahead:
                return
            seen, dropped = seen + info.frames, info.dropped


class _Measures:
    """All that is measured of one part of a video."""

    def __init__(self, options: ScanOptions, pictures: Callable[[NDArray[np.uint8]], None] | None) -> None:
        self._cuts, self._levels, self._text = Cuts(options.cuts), Levels(), Text(options.text)
        self._letterbox, self._fingerprints, self._blocks = Letterbox(options.filters), Fingerprints(), Blocks(pictures)
        self._breaks, self._corrupt = Breaks(), Corrupt()

    def taken(self, reader: video.Reader, frames: Iterator[tuple[float, Any]]) -> Iterator[tuple[float, Any]]:
        """Yield the frames of the part, each measured. Measurements see times from the part's first frame on."""
        all_of_them = (
            self._cuts, self._levels, self._text, self._letterbox, self._fingerprints, self._blocks, self._breaks, self._corrupt,
        )  # fmt: skip
        begin = 0.0
        for number, (time, frame) in enumerate(frames):
            begin = begin if number else time
            small = video.thumbnail(frame, *_small(frame.height, frame.width))
            grey = np.asarray(cv2.cvtColor(small, cv2.COLOR_RGB2GRAY), np.uint8)
            view = View(number, time - begin, frame, small, grey, reader.jumps, reader.corrupt)
            for measurement in all_of_them:
                measurement.add(view)
            yield time, frame

    def finish(self, reader: video.Reader, info: video.VideoInfo) -> Scan:
        """Return what was measured."""
        self._blocks.flush()
        crop = self._letterbox.crop()
        width, height = _shown(info, crop, reader) if crop else (info.width, info.height)
        luma, motion, sharpness = self._levels.columns(info.frames)
        whole, inner = self._fingerprints.finish()
        breaks = self._breaks.column(info.frames)
        return Scan(
            codec=info.codec,
            width=width,
            height=height,
            seconds=info.seconds,
            damage=info.damage,
            crop=crop,
            details={name: getattr(info, name) for name in _DETAILS},
            times=info.times,
            cut=np.maximum(self._cuts.column(info.frames), breaks),
            breaks=breaks,
            luma=luma,
            motion=motion,
            sharpness=sharpness,
            text=self._text.column(info.frames),
            corrupt=self._corrupt.column(info.frames),
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
