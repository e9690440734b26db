"""One open video: its frames in display order with their times, and what decoding it to its end has shown.

In:  the path of a local file.
Out: (seconds, frame) pairs, `VideoInfo`; every failure is a `VideoError` with a one-word reason.
"""

from __future__ import annotations

import math
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pipeline.video.device import Device
from pipeline.video.picture import ROTATIONS, colour_name, frame_seconds, orientation_of, pixel_aspect, shown_size


class VideoError(ValueError):
    """A video that cannot be used. `reason` is a snake_case word from a bounded set; the message names the file."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return VideoError, (self.reason, str(self))


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
    """`matrix/range` as the file names them, such as bt709/limited; `unspecified` if it names none."""
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


class Reader:
    """One open video, decoded in order by one thread. Use as a context manager; not thread-safe.

    max_pixels: pixels of a stored frame above which the file is refused before a frame is allocated.
    beat: called for each decoded frame, as a heartbeat. device: decodes; None is the CPU.
    Raises VideoError, DeviceError.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        max_pixels: int = 8192 * 8192,
        beat: Callable[[], None] | None = None,
        device: Device | None = None,
    ) -> None:
        self.path = str(path)
        self._beat = beat
        self._device = device if device is not None and device.hardware else None
        self._in_software = False
        try:
            size = regular(path)
            if size == 0:
                raise VideoError("empty_file", f"{path}: the file is empty")
            accelerator = None if self._device is None else self._device.accelerator()
            self._container = av.open(self.path, metadata_errors="replace", hwaccel=accelerator)
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | IsADirectoryError)
            if not missing:
                self._blame_device()
            reason = "not_found" if missing else "no_permission" if isinstance(error, PermissionError) else "unreadable"
            raise VideoError(reason, f"{path}: {error.strerror}") from error
        except av.error.FFmpegError as error:
            self._blame_device()
            raise VideoError("unreadable", f"{path}: {error.strerror}") from error
        try:
            self._open(max_pixels)
        except VideoError:
            self._container.close()
            raise

    def _open(self, max_pixels: int) -> None:
        stream = self._container.streams.best("video")
        if stream is None:
            raise VideoError("no_video_stream", f"{self.path}: holds no video stream")
        context: Any = stream.codec_context
        if context is None:
            raise VideoError("unsupported_codec", f"{self.path}: no decoder for its video stream")
        if context.width * context.height > max_pixels:
            raise VideoError(
                "too_large",
                f"{self.path}: frames of {context.width}x{context.height} pixels; pipeline.limits.max_pixels is {max_pixels}",
            )
        context.thread_count = 1
        context.thread_type = "NONE"
        context.options = {"max_pixels": str(max_pixels)}
        self.stream: Any = stream
        self.codec = str(context.name)
        self._first: Fraction | None = None
        self._last: Fraction | None = None
        self.dropped = 0
        self._crops: dict[tuple[Any, ...], tuple[Any, Any, Any]] = {}

    def _blame_device(self) -> None:
        """Raise DeviceError if the GPU is gone: opening a file opens it too, and it must not make every video look unreadable."""
        if self._device is not None:
            self._device.check()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._container.close()

    @property
    def start(self) -> float:
        """Time stamp of the first shown frame, seconds; known once a frame has been decoded."""
        return float(self._first) if self._first is not None else 0.0

    def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield (seconds from the first frame, frame) in display order, strictly rising in time, to the video's end.

        Raises VideoError("damaged") at the first packet that does not decode.
        """
        step = Fraction(1, 25)
        if self.stream.average_rate:
            step = 1 / Fraction(self.stream.average_rate)
        try:
            frames: Iterator[Any] = self._container.decode(self.stream)
            for frame in frames:
                if self._beat is not None:
                    self._beat()
                if self._device is not None and not self._in_software:
                    self._in_software = self.stream.codec_context.pix_fmt != self._device.pixel_format
                    self._device.software[self.codec] += self._in_software
                if frame.pts is not None:
                    time = Fraction(frame.pts) * Fraction(frame.time_base)
                else:
                    time = Fraction(0) if self._last is None else self._last + step
                if self._last is not None and time <= self._last:
                    self.dropped += 1
                    continue
                if self._first is None:
                    self._first = time
                self._last = time
                yield float(time - self._first), frame
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise VideoError("memory", f"{self.path}: decoding needs more memory than pipeline.limits.memory_gb") from error
            raise VideoError("damaged", f"{self.path}: decoding stops at {self._position()}: {error.strerror}") from error

    def _position(self) -> str:
        if self._last is None or self._first is None:
            return "the first frame"
        return f"{float(self._last - self._first):.3f} s"

    def cropped(self, frame: av.VideoFrame, crop: str) -> av.VideoFrame:
        """Return the part `W:H:X:Y` of a frame, without copying. Raises VideoError if the frame does not contain it."""
        key = (crop, frame.width, frame.height, frame.format.name, frame.colorspace, frame.color_range)
        try:
            if key not in self._crops:
                graph = av.filter.Graph()
                base = frame.time_base or Fraction(1, 1000)
                source = graph.add_buffer(width=frame.width, height=frame.height, format=frame.format, time_base=base)
                cut, sink = graph.add("crop", crop), graph.add("buffersink")
                source.link_to(cut)
                cut.link_to(sink)
                graph.configure()
                # A filter does not keep its graph alive, and crashes the process without it.
                self._crops[key] = (graph, source, sink)
            _, source, sink = self._crops[key]
            source.push(frame)
            found: av.VideoFrame = sink.pull()
        except (av.error.FFmpegError, ValueError) as error:
            raise VideoError("damaged", f"{self.path}: no part {crop} in a frame of {frame.width}x{frame.height}") from error
        return found

    def seek(self, seconds: float) -> None:
        """Move to the last key frame at or before `seconds` (from the first frame, which must have been decoded)."""
        assert self._first is not None, "seek needs the clock of the first frame"
        offset = math.floor((self._first + Fraction(seconds)) / Fraction(self.stream.time_base))
        try:
            self._container.seek(offset, stream=self.stream, backward=True)
        except av.error.FFmpegError as error:
            raise VideoError("unseekable", f"{self.path}: cannot seek to {seconds:.3f} s: {error.strerror}") from error
        self._last = None


def regular(path: str | Path) -> int:
    """Return the size of a file in bytes. Raises OSError, and VideoError for a pipe, socket or device, which may block forever."""
    status = Path(path).stat()
    if not stat.S_ISREG(status.st_mode) and not stat.S_ISDIR(status.st_mode):
        raise VideoError("unreadable", f"{path}: not a regular file")
    return status.st_size


def probe(path: str | Path, *, max_frames: int = 1_000_000, max_pixels: int = 8192 * 8192) -> VideoInfo:
    """Decode a video to its end and describe what it holds.

    A video that breaks off after some frames is described up to there; `damage` then says why.
    Raises VideoError: not_found, no_permission, empty_file, unreadable, no_video_stream, unsupported_codec, too_large,
    too_many_frames, no_frames, damaged (not one frame decodes).
    """
    with Reader(path, max_pixels=max_pixels) as reader:
        return describe(reader, ((time, frame) for time, frame in reader.frames()), max_frames=max_frames)


def describe(reader: Reader, frames: Iterator[tuple[float, av.VideoFrame]], *, max_frames: int) -> VideoInfo:
    """Consume `frames` (of `reader`) and describe what was seen; a caller that wraps the iterator sees each frame on the way."""
    times: list[float] = []
    first: av.VideoFrame | None = None
    damage, tail = "", 0.0
    try:
        for time, frame in frames:
            first = first or frame
            times.append(time)
            tail = frame_seconds(frame)
            if len(times) > max_frames:
                raise VideoError("too_many_frames", f"{reader.path}: over pipeline.limits.max_frames = {max_frames} frames")
    except VideoError as error:
        if error.reason != "damaged" or first is None:
            raise
        damage = str(error)
    if first is None:
        raise VideoError("no_frames", f"{reader.path}: not one frame decodes")
    if len(times) > 1:
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
