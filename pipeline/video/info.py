"""What a video holds, as decoding it to its end has shown; headers are not trusted.

In:  an open `Reader`, or the path of a local file. Out: `VideoInfo`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.video.container import VideoError
from pipeline.video.picture import ROTATIONS, colour_name, frame_seconds, orientation_of, pixel_aspect, shown_size
from pipeline.video.reader import Reader


@dataclass(frozen=True)
class VideoInfo:
    """What decoding a video to its end has shown (headers are not trusted)."""

    path: str
    codec: str
    width: int
    """Pixels as shown: after rotation and pixel aspect."""
    height: int
    times: NDArray[np.float64]
    """Seconds of each frame from the first one, strictly increasing."""
    seconds: float
    """Time just after the last frame."""
    rotation: int
    """Degrees clockwise by which stored pictures are rotated for display: 0, 90, 180 or 270."""
    mirrored: bool
    pixel_aspect: float
    pixel_format: str
    colour: str
    """`matrix/range` as the file names them, such as bt709/limited; `unspecified` if it names none. HDR: bt2020/limited/pq."""
    start: float
    """Time stamp of the first shown frame in the file's own clock, seconds."""
    dropped: int = 0
    """Frames that were dropped because their time was not after that of the previous frame."""
    damage: str = ""
    """Why decoding stopped early; empty for a video that decodes to its end."""

    @property
    def frames(self) -> int:
        """Number of frames that decode."""
        return len(self.times)

    @property
    def fps(self) -> float:
        """Mean frames per second; 0 for a single picture."""
        return (self.frames - 1) / float(self.times[-1]) if self.frames > 1 else 0.0

    @property
    def variable_rate(self) -> bool:
        """Whether intervals differ from their median by more than a fifth (rounding to clock ticks does not count)."""
        steps = np.diff(self.times)
        return bool(len(steps) and np.any(np.abs(steps - np.median(steps)) > 0.2 * np.median(steps) + 1e-3))


def probe(path: str | Path, *, max_frames: int = 8_000_000, max_pixels: int = 8192 * 8192) -> VideoInfo:
    """Decode a video to its end and describe what it holds.

    A video that breaks off after some frames is described up to there; `damage` then says why.
    Raises VideoError: not_found, no_permission, empty_file, unreadable, no_video_stream, unsupported_codec, too_large,
    too_many_frames, no_frames, damaged (not one frame decodes).
    """
    with Reader(path, max_pixels=max_pixels) as reader:
        return describe(reader, ((time, frame) for time, frame in reader.frames()), max_frames=max_frames)


def describe(reader: Reader, frames: Iterator[tuple[float, av.VideoFrame]], *, max_frames: int, seen: int = 0) -> VideoInfo:
    """Consume `frames` (of `reader`) and describe what was seen; a caller that wraps the iterator sees each frame on the way.

    seen: frames of the video before these, of which it may have `max_frames` in all.
    """
    times: list[float] = []
    first: av.VideoFrame | None = None
    damage, tail = "", 0.0
    try:
        for time, frame in frames:
            first = first or frame
            times.append(time)
            tail = frame_seconds(frame)
            if seen + len(times) > max_frames:
                raise VideoError("too_many_frames", f"{reader.path}: over pipeline.limits.max_frames = {max_frames} frames")
    except VideoError as error:
        if error.reason != "damaged" or first is None:
            raise
        damage = str(error)
    if first is None:
        raise VideoError("no_frames", f"{reader.path}: not one frame decodes")
    if len(times) == 1:
        tail = 0.0  # a still has no length, whatever the file says: no clip of several frames is made of it
    else:
        # Never more than `read_clips` grants to the last frame, so that a planned clip can be read.
        tail = min(float(np.median(np.diff(times))), max(tail, times[-1] - times[-2]))
    orientation = orientation_of(first)
    rotation, mirrored = ROTATIONS[orientation]
    aspect = pixel_aspect(reader.stream, first)
    width, height = shown_size(first, orientation, aspect)
    return VideoInfo(
        path=reader.path,
        codec=reader.codec,
        width=round(width),
        height=round(height),
        times=np.asarray(times),
        seconds=times[-1] + (tail if tail > 0 else 0.04),
        rotation=rotation,
        mirrored=mirrored,
        pixel_aspect=aspect,
        pixel_format=str(first.format.name),
        colour=colour_name(first),
        start=reader.start,
        dropped=reader.dropped,
        damage=damage,
    )
