"""The frames that a video shows at given times: for one clip, for many clips in one pass, or for the whole video at a rate.

In:  the path of a local file, times in seconds from its first shown frame, height and width.
Out: uint8 (T, H, W, 3) per clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np

from pipeline.video.container import VideoError
from pipeline.video.device import Device
from pipeline.video.picture import Frames, frame_seconds, picture
from pipeline.video.reader import Reader

EPSILON = 1e-6
"""Seconds by which a frame may start after the requested time: float rounding, less than any time base."""
SEEK_GAP = 8.0
"""Seconds ahead of the current position from which a seek is tried instead of decoding on."""


class RequestError(ValueError):
    """Requests whose times are negative or out of order: a bug of the caller; the message names the file."""


class Request(NamedTuple):
    """One clip of a video: times in seconds from the video's first frame (rising), and the shape to give it."""

    times: tuple[float, ...]
    height: int
    width: int
    crop: str = ""
    """The part of the stored picture to use, `W:H:X:Y` in pixels; empty for all of it."""


def read_frames(path: str | Path, times: Sequence[float], height: int, width: int, *, max_pixels: int = 8192 * 8192) -> Frames:
    """Return uint8 (T, height, width, 3): the frames shown at `times` (seconds from the first frame, rising).

    Raises VideoError as `probe` does, and too_short where the video ends before a time.
    """
    return next(read_clips(path, [Request(tuple(times), height, width)], max_pixels=max_pixels))


def read_clips(
    path: str | Path,
    requests: Sequence[Request],
    *,
    max_pixels: int = 8192 * 8192,
    beat: Callable[[], None] | None = None,
    device: Device | None = None,
) -> Iterator[Frames]:
    """Yield uint8 (T, height, width, 3) for each request, in order, in one pass over the video.

    Requests must be sorted by their first time (RequestError); they may overlap, and may want one frame at several sizes.
    What is decoded is a function of (file, requests) alone, so a clip's pixels do not depend on timing.
    """
    for request in requests:
        if not request.times or request.times[0] < 0 or any(b < a for a, b in pairwise(request.times)):
            raise RequestError(f"{path}: the times of a clip must be at least 0 and must not fall")
    if any(b.times[0] < a.times[0] for a, b in pairwise(requests)):
        raise RequestError(f"{path}: clips must be asked for in order of their first frame")
    with Reader(path, max_pixels=max_pixels, beat=beat, device=device) as reader:
        pending = [_Pending(request) for request in requests]
        done = 0
        for time, frame, until in _spans(reader, pending):
            for item in pending[done:]:
                if item.request.times[0] > until - EPSILON and math.isfinite(until):
                    break
                item.take(reader, time, frame, until)
            while done < len(pending) and pending[done].full:
                yield pending[done].release()
                done += 1
            if done == len(pending):
                return


class _Pending:
    """A request that is filled as frames go by."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self._clip: Frames = np.empty((0,), np.uint8)
        self._count = 0

    @property
    def full(self) -> bool:
        return self._count == len(self.request.times)

    @property
    def next_time(self) -> float:
        return self.request.times[self._count]

    def take(self, reader: Reader, time: float, frame: av.VideoFrame, until: float) -> None:
        """Take `frame`, shown from `time` until `until`, for each time of the request in that interval."""
        image: Frames | None = None
        while not self.full and time - EPSILON <= self.next_time < until - EPSILON:
            if image is None:
                part = reader.cropped(frame, self.request.crop) if self.request.crop else frame
                image = picture(reader.stream, part, self.request.height, self.request.width)
            if self._count == 0:
                self._clip = np.empty((len(self.request.times), *image.shape), np.uint8)
            self._clip[self._count] = image
            self._count += 1

    def release(self) -> Frames:
        """Return the filled clip and drop the reference to it."""
        clip, self._clip = self._clip, self._clip[:0]
        return clip


def _spans(reader: Reader, pending: Sequence[_Pending]) -> Iterator[tuple[float, av.VideoFrame, float]]:
    """Yield (begin, frame, end) of the frames that the requests may need, seeking over long gaps."""
    held: tuple[float, av.VideoFrame] | None = None
    interval = 0.0
    frames = reader.frames()
    seekable, jumped = True, -1.0
    while True:
        moved = False
        for time, frame in frames:
            if held is not None:
                if time <= held[0]:
                    continue
                interval = time - held[0]
                yield held[0], held[1], time
            held = (time, frame)
            target = min(item.next_time for item in pending if not item.full)
            # One jump per target: key frames may be so rare that it lands far before the target every time.
            if seekable and target != jumped and target - time > SEEK_GAP:
                jumped = target
                # The frame shown at the target may begin before it; a second of margin finds it.
                frames, held, seekable = _jump(reader, target - 1.0, time, frames, held)
                moved = True
                break
        if not moved:
            break
    if held is None:
        raise VideoError("no_frames", f"{reader.path}: not one frame decodes")
    wanted = max(item.request.times[-1] for item in pending)
    # After a jump to the very last frame its interval is unknown.
    last_interval = max(interval, frame_seconds(held[1])) or 1.0
    if wanted > held[0] + last_interval + EPSILON:
        raise VideoError(
            "too_short", f"{reader.path}: ends at {held[0] + last_interval:.3f} s; a frame at {wanted:.3f} s was requested"
        )
    yield held[0], held[1], math.inf


def _jump(
    reader: Reader,
    target: float,
    position: float,
    frames: Iterator[tuple[float, av.VideoFrame]],
    held: tuple[float, av.VideoFrame],
) -> tuple[Iterator[tuple[float, av.VideoFrame]], tuple[float, av.VideoFrame] | None, bool]:
    """Seek to before `target`; where that is not possible, go on from here, without seeking again.

    A landing is a clean key frame of the decoder at or before the target, so that the frames from there on are those of decoding
    through (reader.py). One before the position would only decode frames twice.
    """
    if not reader.is_seekable():
        return frames, held, False
    try:
        reader.seek(target)
        after = reader.frames()
        found = next(after, None)
    except VideoError as error:
        if error.reason not in ("unseekable", "damaged"):
            raise
        found = None
    if found is not None and found[0] >= position:
        return _chain(found, after), None, True
    if found is not None:
        return _chain(found, after), held, False
    reader.rewind()
    return reader.frames(), held, False


def _chain(
    first: tuple[float, av.VideoFrame], rest: Iterator[tuple[float, av.VideoFrame]]
) -> Iterator[tuple[float, av.VideoFrame]]:
    yield first
    yield from rest


def iter_frames(
    path: str | Path,
    fps: float | None = None,
    height: int | None = None,
    width: int | None = None,
    *,
    max_frames: int = 8_000_000,
    max_pixels: int = 8192 * 8192,
) -> Iterator[tuple[float, Frames]]:
    """Yield (seconds, uint8 (H, W, 3)) of a whole video, to its end or to where it breaks off (VideoError damaged).

    fps: None yields every frame at its own time; a rate yields the frames shown at k / fps.
    height, width: both, or neither for the shown size.
    """
    with Reader(path, max_pixels=max_pixels) as reader:
        held: tuple[float, av.VideoFrame] | None = None
        count, tick = 0, 0
        for time, frame in reader.frames():
            count += 1
            if count > max_frames:
                raise VideoError("too_many_frames", f"{path}: over {max_frames} frames")
            if fps is None:
                yield time, picture(reader.stream, frame, height, width)
                continue
            if held is not None and tick / fps < time - EPSILON:
                image = picture(reader.stream, held[1], height, width)
                while tick / fps < time - EPSILON:
                    yield tick / fps, image
                    tick += 1
            held = (time, frame)
        if fps is not None and held is not None and tick / fps <= held[0] + EPSILON:
            yield tick / fps, picture(reader.stream, held[1], height, width)
