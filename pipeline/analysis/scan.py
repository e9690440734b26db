"""One look at a whole video: what it holds, where its shots end, and figures of every frame.

In:  a local video, decoded once by pipeline.video in small pictures.
Out: `Scan` (true frame times, cut times, luma, motion and sharpness of each frame, a print).
Called by: the decoding child (pipeline.decoder_child); `shots` by pipeline.plan.

The light detector is PySceneDetect's ContentDetector; it is fed with frames from pipeline.video, so there is one decoder. For
TransNetV2 the tiny pictures it needs go out to the parent of the decoding child, a block at a time (pipeline.transnet).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from scenedetect import FrameTimecode
from scenedetect.detectors import ContentDetector

from pipeline import video
from pipeline.analysis.fingerprint import FINE, RATE, SIDE, Print, Printer, inner
from pipeline.analysis.letterbox import Bars
from pipeline.analysis.text_detector import EVERY, TextDetector
from pipeline.config import CutConfig, FilterConfig
from pipeline.video import Device

SHORT_SIDE = 72
"""Pixels of the shorter side of the pictures that are looked at; detectors and scores are defined at this size."""
LONGEST_SIDE = 320
_EDGE = 16.0
"""Luma up to which a line of the small picture counts as black bar, for prints."""
PICTURE_HEIGHT, PICTURE_WIDTH, BLOCK = 27, 48, 100
"""Size of TransNetV2's pictures, and how many of them go out at once (400 kB)."""


@dataclass(frozen=True)
class Scan:
    """What one decoding of a video has shown. Arrays have one entry a frame."""

    codec: str
    width: int
    """As shown, pixels; of the part that `crop` names."""
    height: int
    seconds: float
    damage: str
    crop: str
    """The part of the stored picture without black bars, `W:H:X:Y`; empty for all of it, or where bars are not looked for."""
    details: dict[str, Any]
    """Rotation, pixel aspect, colour, pixel format, variable rate, start: for the record."""
    times: NDArray[np.float64]
    cut: NDArray[np.float64]
    """1 where a new shot begins, -1 for a frame inside a gradual transition (it belongs to no shot), else 0."""
    luma: NDArray[np.float64]
    """Mean luma, 0 to 255."""
    motion: NDArray[np.float64]
    """Mean absolute luma difference to the frame before (0 for the first), 0 to 255."""
    sharpness: NDArray[np.float64]
    """Variance of the Laplacian of the luma."""
    text: NDArray[np.float64]
    """Share of the picture that text covers, 0 to 1, of the frames that were looked at; not a number for the others."""
    grey: Print
    """What is seen around k / near.RATE seconds, 8x8 greys each: the video's print for finding near copies."""
    inner: Print
    """The same of the picture without its black bars; empty where it has none."""

    ARRAYS = ("times", "cut", "luma", "motion", "sharpness", "text")


def scan(
    path: str | Path,
    cuts: CutConfig,
    filters: FilterConfig | None = None,
    *,
    text: str = "",
    max_frames: int,
    max_pixels: int,
    beat: Callable[[], None] | None = None,
    pictures: Callable[[NDArray[np.uint8]], None] | None = None,
    device: Device | None = None,
) -> Scan:
    """Decode a video once, to its end. Raises VideoError as pipeline.video.probe does.

    filters: says whether black bars are looked for. text: file of the text detector's network; none: no look for text.
    pictures: takes blocks of the video's frames as uint8 (n, 27, 48, 3), for a detector that runs elsewhere.
    """
    block: list[NDArray[np.uint8]] = []
    columns: list[tuple[float, float, float, float, float]] = []
    printer, fine, edges = Printer(), Printer(FINE), Bars(_EDGE)
    bars = Bars(filters.letterbox_luma) if filters is not None and filters.letterbox == "crop" else None
    reader_of_text = TextDetector(Path(text)) if text else None
    detector = None
    if cuts.method == "content":
        detector = ContentDetector(threshold=cuts.threshold, min_scene_len=cuts.min_frames)
    begins: set[int] = set()
    with video.Reader(path, max_pixels=max_pixels, beat=beat, device=device) as reader:

        def look() -> Iterator[tuple[float, Any]]:
            before: Any = None
            looked = sought = read = 0.0
            for index, (time, frame) in enumerate(reader.frames()):
                small = video.thumbnail(frame, *_small(frame.height, frame.width))
                grey = cv2.cvtColor(small, cv2.COLOR_RGB2GRAY)
                luma = grey.astype(np.float32)
                comparable = before is not None and before.shape == luma.shape
                motion = float(cv2.absdiff(luma, before).mean()) if comparable else 0.0
                covered = math.nan
                if reader_of_text is not None and time >= read:
                    read = time + EVERY
                    shown = video.thumbnail(frame, *TextDetector.size(frame.height, frame.width))
                    covered = reader_of_text.coverage(shown)
                columns.append((0.0, float(luma.mean()), motion, float(cv2.Laplacian(grey, cv2.CV_32F).var()), covered))
                tiny = cv2.resize(grey, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
                printer.add(time, np.asarray(tiny, np.uint8).reshape(-1))
                fine.add(time, np.asarray(cv2.resize(grey, (FINE, FINE), interpolation=cv2.INTER_AREA), np.uint8).reshape(-1))
                if time >= sought:
                    sought = time + 1 / RATE
                    edges.add(np.asarray(grey, np.uint8))
                before = luma
                if bars is not None and time >= looked:
                    looked = time + 1 / RATE
                    bars.add(video.luma(frame))
                if pictures is not None:
                    block.append(video.thumbnail(frame, PICTURE_HEIGHT, PICTURE_WIDTH))
                    if len(block) == BLOCK:
                        pictures(np.stack(block))
                        block.clear()
                if detector is not None:
                    bgr = np.ascontiguousarray(small[..., ::-1])
                    begins.update(cut.frame_num for cut in detector.process_frame(FrameTimecode(index, fps=25.0), bgr))
                yield time, frame

        info = video.describe(reader, look(), max_frames=max_frames)
    if pictures is not None and block:
        pictures(np.stack(block))
    crop = "" if bars is None else bars.crop()
    width, height = _part(info, crop, reader) if crop else (info.width, info.height)
    table = np.asarray(columns[: info.frames], dtype=np.float64)
    for index in begins:
        if index < len(table):
            table[index, 0] = 1.0
    return Scan(
        codec=info.codec,
        width=width,
        height=height,
        seconds=info.seconds,
        damage=info.damage,
        crop=crop,
        details={
            "rotation": info.rotation,
            "mirrored": info.mirrored,
            "pixel_aspect": info.pixel_aspect,
            "pixel_format": info.pixel_format,
            "colour": info.colour,
            "variable_rate": info.variable_rate,
            "start": info.start,
            "dropped": info.dropped,
        },
        times=info.times,
        cut=table[:, 0].copy(),
        luma=table[:, 1].copy(),
        motion=table[:, 2].copy(),
        sharpness=table[:, 3].copy(),
        text=table[:, 4].copy(),
        grey=printer.finish(),
        inner=inner(fine.finish(), *part) if (part := edges.shares()) else np.zeros((0, SIDE * SIDE), np.uint8),
    )


def _part(info: video.VideoInfo, crop: str, reader: video.Reader) -> tuple[int, int]:
    """Width and height as shown of a part of the stored picture."""
    width, height = (int(number) for number in crop.split(":")[:2])
    context = reader.stream.codec_context
    across, down = width / context.width, height / context.height
    if info.rotation in (90, 270):
        across, down = down, across
    return max(1, round(info.width * across)), max(1, round(info.height * down))


def _small(height: int, width: int) -> tuple[int, int]:
    scale = min(SHORT_SIDE / min(height, width), LONGEST_SIDE / max(height, width), 1.0)
    return max(2, round(height * scale)), max(2, round(width * scale))
