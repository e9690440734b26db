"""The one door to `av`: what a video holds, its frames at given times, and writing an mp4.

In:  paths of local files and times in seconds from the video's first shown frame.
Out: `VideoInfo`, uint8 RGB frames, H.264 mp4 files; every failure is a `VideoError` with a one-word reason.
Called by: pipeline.cuts (all frames, small), pipeline.decoder (clips, in a killable child), the tokenizer's and the
transformer's training, sampling and reports (VideoWriter, write_video).

Frame sampling, resize and crop are defined here and nowhere else:
- the frame at time t is the last one whose own time is at most t (what a player shows at t), never an index;
- rotation and mirroring of the file's display matrix and the pixel aspect ratio are applied;
- the picture is resized (bicubic, antialiased) so that it just covers height x width, and cropped in the middle;
- colours become RGB by the matrix and range that the file names; a file that names none is read as BT.601.
Decoding takes one thread: parallelism comes from processes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, NamedTuple

import av
import numpy as np
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from numpy.typing import NDArray

Frames = NDArray[np.uint8]
EPSILON = 1e-6
"""Seconds by which a frame may start after the asked time: the noise of float arithmetic, less than any time base."""
SEEK_GAP = 8.0
"""Seconds ahead of the position from which a seek is tried instead of decoding on."""
_RESIZE = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT | Interpolation.BITEXACT
_NAMED_COLORSPACES = {int(c) for c in Colorspace}
_MATRICES = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}


class VideoError(ValueError):
    """A video that cannot be used. `reason` is one of a bounded set of snake_case words; the message names the file."""

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
    """Degrees clockwise by which stored pictures are turned for display: 0, 90, 180 or 270."""
    mirrored: bool
    pixel_aspect: float
    pixel_format: str
    colour: str
    """`matrix/range` as the file names them, such as bt709/limited; `unspecified` where it names none."""
    start: float
    """Time stamp of the first shown frame in the file's own clock, seconds."""
    dropped: int = 0
    """Frames without a place on the clock (time not after the frame before)."""
    damage: str = ""
    """Why decoding stopped early; empty for a video that decodes to its end."""

    @property
    def frames(self) -> int:
        """Frames that decoding really gives."""
        return len(self.times)

    @property
    def fps(self) -> float:
        """Mean frames a second; 0 for a single picture."""
        return (self.frames - 1) / float(self.times[-1]) if self.frames > 1 else 0.0

    @property
    def variable_rate(self) -> bool:
        """Intervals differ by more than a fifth of their median (rounding to the clock's ticks does not count)."""
        steps = np.diff(self.times)
        return bool(len(steps) and np.any(np.abs(steps - np.median(steps)) > 0.2 * np.median(steps) + 1e-3))


class Request(NamedTuple):
    """One clip of a video: times in seconds from its first frame (rising), and the shape to give it."""

    times: tuple[float, ...]
    height: int
    width: int
    crop: str = ""
    """The part of the stored picture to use, `W:H:X:Y` in pixels; empty for all of it."""


class _Orientation(NamedTuple):
    transpose: bool
    flip_x: bool
    flip_y: bool

    def apply(self, image_HW3: Frames) -> Frames:
        if self.transpose:
            image_HW3 = image_HW3.transpose(1, 0, 2)
        if self.flip_x:
            image_HW3 = image_HW3[:, ::-1]
        if self.flip_y:
            image_HW3 = image_HW3[::-1]
        return image_HW3


_UPRIGHT = _Orientation(False, False, False)
_TURNS = (_UPRIGHT, _Orientation(True, True, False), _Orientation(False, True, True), _Orientation(True, False, True))
_ROTATIONS = {
    _Orientation(False, False, False): (0, False),
    _Orientation(True, True, False): (90, False),
    _Orientation(False, True, True): (180, False),
    _Orientation(True, False, True): (270, False),
    _Orientation(False, True, False): (0, True),
    _Orientation(True, False, False): (90, True),
    _Orientation(False, False, True): (180, True),
    _Orientation(True, True, True): (270, True),
}


class Reader:
    """One open video, decoded in order by one thread. Use as a context manager; not thread-safe.

    max_pixels: pixels of a stored frame above which the file is refused before a frame is allocated.
    beat: called for each decoded frame, as a sign of life.
    Raises VideoError.
    """

    def __init__(self, path: str | Path, *, max_pixels: int = 8192 * 8192, beat: Callable[[], None] | None = None) -> None:
        self.path = str(path)
        self._beat = beat
        try:
            size = Path(path).stat().st_size
            if size == 0:
                raise VideoError("empty_file", f"{path}: the file is empty")
            self._container = av.open(self.path, metadata_errors="replace")
        except OSError as error:
            missing = isinstance(error, FileNotFoundError | IsADirectoryError)
            reason = "not_found" if missing else "no_permission" if isinstance(error, PermissionError) else "unreadable"
            raise VideoError(reason, f"{path}: {error.strerror}") from error
        except av.error.FFmpegError as error:
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

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._container.close()

    @property
    def start(self) -> float:
        """Clock of the first shown frame, seconds; known once a frame has been decoded."""
        return float(self._first) if self._first is not None else 0.0

    def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Give (seconds from the first frame, frame) in order of display, strictly rising in time, to the video's end.

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
        """Return the part `W:H:X:Y` of a frame; nothing is copied. Raises VideoError where the frame does not hold it."""
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
                # A filter does not keep its graph alive, and without it ends the process.
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


def probe(path: str | Path, *, max_frames: int = 1_000_000, max_pixels: int = 8192 * 8192) -> VideoInfo:
    """Decode a video to its end and say what it holds.

    A video that breaks off after some frames is described up to there, with `damage` saying why.
    Raises VideoError: not_found, no_permission, empty_file, unreadable, no_video_stream, unsupported_codec, too_large,
    too_many_frames, no_frames, damaged (not one frame decodes).
    """
    with Reader(path, max_pixels=max_pixels) as reader:
        return describe(reader, ((time, frame) for time, frame in reader.frames()), max_frames=max_frames)


def describe(reader: Reader, frames: Iterator[tuple[float, av.VideoFrame]], *, max_frames: int) -> VideoInfo:
    """Run `frames` (of `reader`) to their end and return what was seen; pipeline.cuts looks at each frame on the way."""
    times: list[float] = []
    first: av.VideoFrame | None = None
    damage, tail = "", 0.0
    try:
        for time, frame in frames:
            first = first or frame
            times.append(time)
            tail = _duration(frame)
            if len(times) > max_frames:
                raise VideoError("too_many_frames", f"{reader.path}: over pipeline.limits.max_frames = {max_frames} frames")
    except VideoError as error:
        if error.reason != "damaged" or first is None:
            raise
        damage = str(error)
    if first is None:
        raise VideoError("no_frames", f"{reader.path}: not one frame decodes")
    if len(times) > 1:
        # Never more than `read_clips` grants the last frame, so that a planned clip can be read.
        tail = min(float(np.median(np.diff(times))), max(tail, times[-1] - times[-2]))
    orientation = _orientation(first)
    rotation, mirrored = _ROTATIONS[orientation]
    aspect = _pixel_aspect(reader.stream, first)
    width, height = _shown(first, orientation, aspect)
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
        colour=_colour_name(first),
        start=reader.start,
        dropped=reader.dropped,
        damage=damage,
    )


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
) -> Iterator[Frames]:
    """Give uint8 (T, height, width, 3) for each request, in order, in one pass over the video.

    Requests must be sorted by their first time; they may overlap, and several may want one frame at different sizes.
    What is decoded is a function of (file, requests) alone, so a clip's pixels do not depend on timing.
    """
    for request in requests:
        if not request.times or request.times[0] < 0 or any(b < a for a, b in pairwise(request.times)):
            raise ValueError(f"{path}: the times of a clip must be at least 0 and must not fall")
    if any(b.times[0] < a.times[0] for a, b in pairwise(requests)):
        raise ValueError(f"{path}: clips must be asked for in order of their first frame")
    with Reader(path, max_pixels=max_pixels, beat=beat) as reader:
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
    """A request that fills up as frames go by."""

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
        """Take `frame`, shown from `time` until `until`, for every time of the request that falls into it."""
        image: Frames | None = None
        while not self.full and time - EPSILON <= self.next_time < until - EPSILON:
            if image is None:
                part = reader.cropped(frame, self.request.crop) if self.request.crop else frame
                image = _picture(reader.stream, part, self.request.height, self.request.width)
            if self._count == 0:
                self._clip = np.empty((len(self.request.times), *image.shape), np.uint8)
            self._clip[self._count] = image
            self._count += 1

    def release(self) -> Frames:
        """Hand over the filled clip and keep no hold of it."""
        clip, self._clip = self._clip, self._clip[:0]
        return clip


def _spans(reader: Reader, pending: Sequence[_Pending]) -> Iterator[tuple[float, av.VideoFrame, float]]:
    """Give (begin, frame, end) of the frames that the requests may need, seeking over long gaps."""
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
            # One jump a target: key frames may be so rare that it lands far before the target, again and again.
            if seekable and target != jumped and target - time > SEEK_GAP:
                jumped = target
                # The frame that is shown at the target may be long before it; a second of margin finds it.
                frames, held, seekable = _jump(reader, target - 1.0, time, frames, held)
                moved = True
                break
        if not moved:
            break
    if held is None:
        raise VideoError("no_frames", f"{reader.path}: not one frame decodes")
    wanted = max(item.request.times[-1] for item in pending)
    # After a jump onto the very last frame its interval is unknown.
    last_interval = max(interval, _duration(held[1])) or 1.0
    if wanted > held[0] + last_interval + EPSILON:
        raise VideoError(
            "too_short", f"{reader.path}: ends at {held[0] + last_interval:.3f} s; a frame at {wanted:.3f} s was asked for"
        )
    yield held[0], held[1], math.inf


def _jump(
    reader: Reader,
    target: float,
    position: float,
    frames: Iterator[tuple[float, av.VideoFrame]],
    held: tuple[float, av.VideoFrame],
) -> tuple[Iterator[tuple[float, av.VideoFrame]], tuple[float, av.VideoFrame] | None, bool]:
    """Seek to before `target`; where the file lands after it, go back to the start and decode on without seeking."""
    try:
        reader.seek(target)
        after = reader.frames()
        found = next(after, None)
    except VideoError as error:
        if error.reason not in ("unseekable", "damaged"):
            raise
        found = None
    if found is not None and position <= found[0] <= target:
        return _chain(found, after), None, True
    if found is not None and found[0] < position:
        return _chain(found, after), held, False
    reader.seek(0.0)
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
    max_frames: int = 1_000_000,
    max_pixels: int = 8192 * 8192,
) -> Iterator[tuple[float, Frames]]:
    """Give (seconds, uint8 (H, W, 3)) of a whole video, to its end or to where it breaks off (VideoError damaged).

    fps: None gives every frame at its own time; a rate gives the frames shown at k / fps.
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
                yield time, _picture(reader.stream, frame, height, width)
                continue
            if held is not None and tick / fps < time - EPSILON:
                image = _picture(reader.stream, held[1], height, width)
                while tick / fps < time - EPSILON:
                    yield tick / fps, image
                    tick += 1
            held = (time, frame)
        if fps is not None and held is not None and tick / fps <= held[0] + EPSILON:
            yield tick / fps, _picture(reader.stream, held[1], height, width)


def luma(frame: av.VideoFrame) -> Frames:
    """Return uint8 (H, W): the stored picture's luma at full size, 0 to 255 whatever the file's range."""
    grey = frame.reformat(format="gray", src_color_range=_range(frame), dst_color_range=ColorRange.JPEG, threads=1)
    return np.asarray(grey.to_ndarray(), dtype=np.uint8)


def thumbnail(frame: av.VideoFrame, height: int, width: int) -> Frames:
    """Return uint8 (height, width, 3): the stored picture squeezed to a small size, for cut detection and scores."""
    small = frame.reformat(width=width, height=height, format="rgb24", interpolation=Interpolation.AREA, threads=1)
    return np.ascontiguousarray(small.to_ndarray())


class VideoWriter:
    """Write an H.264 yuv420p mp4 that browsers play, a few frames at a time; no more than the encoder's own is held.

    A context manager: the file gets its name when the block ends without an error, and until then lies beside it as
    .NAME.part; an error leaves nothing and keeps an older file of that name. An odd height or width is padded by repeating
    the edge (yuv420p needs even sides). Raises OSError where the file cannot be written, ValueError for no frame at all.
    """

    def __init__(self, path: str | Path, fps: float) -> None:
        self.path, self.frames = Path(path), 0
        self._part = self.path.with_name(f".{self.path.name}.part")
        self._rate = Fraction(fps).limit_denominator(1001)
        self._stream: Any = None

    def __enter__(self) -> VideoWriter:
        self._part.touch()  # libav opens late, and its errors name no file
        self._container = av.open(str(self._part), "w", format="mp4", options={"movflags": "faststart"})
        return self

    def append(self, frames: Frames) -> None:
        """Take the next frames, uint8 (T, H, W, 3). Raises ValueError for another shape or type than that or the first's."""
        if frames.ndim != 4 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or not frames.size:
            raise ValueError(f"{self.path}: a video takes uint8 (T, H, W, 3), not {frames.dtype} {frames.shape}")
        padded = np.pad(frames, ((0, 0), (0, frames.shape[1] % 2), (0, frames.shape[2] % 2), (0, 0)), mode="edge")
        if self._stream is None:
            self._stream = self._container.add_stream("libx264", rate=self._rate)
            self._stream.height, self._stream.width = padded.shape[1:3]
            self._stream.pix_fmt = "yuv420p"
            self._stream.options = {"crf": "17", "preset": "veryfast"}
            self._stream.codec_context.thread_count = 1
        if padded.shape[1:3] != (self._stream.height, self._stream.width):
            raise ValueError(f"{self.path}: frames of {frames.shape[1]}x{frames.shape[2]} do not fit the first ones")
        for image in padded:
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame.pts = self.frames
            frame.time_base = 1 / self._rate
            self._container.mux(self._stream.encode(frame))
            self.frames += 1

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        try:
            if kind is None and self.frames:
                self._container.mux(self._stream.encode(None))
            self._container.close()
            if kind is None and self.frames:
                self._part.replace(self.path)
        finally:
            self._part.unlink(missing_ok=True)
        if kind is None and not self.frames:
            raise ValueError(f"{self.path}: a video takes at least one frame")


def write_video(path: str | Path, frames: Frames, fps: float) -> None:
    """Write uint8 (T, H, W, 3) as one mp4 (`VideoWriter`)."""
    with VideoWriter(path, fps) as writer:
        writer.append(frames)


def _picture(stream: Any, frame: av.VideoFrame, height: int | None, width: int | None) -> Frames:
    """Return uint8 (height, width, 3): resized to cover, cropped in the middle, upright."""
    orientation = _orientation(frame)
    shown_width, shown_height = _shown(frame, orientation, _pixel_aspect(stream, frame))
    if height is None or width is None:
        height, width = max(1, round(shown_height)), max(1, round(shown_width))
    scale = max(height / shown_height, width / shown_width)
    covered_height = max(height, round(shown_height * scale))
    covered_width = max(width, round(shown_width * scale))
    # The stored picture is resized before it is turned, so its sides swap under a transposing orientation.
    stored = (covered_width, covered_height) if orientation.transpose else (covered_height, covered_width)
    resized = frame.reformat(
        width=stored[1],
        height=stored[0],
        format="rgb24",
        src_colorspace=_matrix(frame),
        interpolation=_RESIZE,
        src_color_range=_range(frame),
        dst_color_range=ColorRange.JPEG,
        threads=1,
    )
    image = orientation.apply(np.asarray(resized.to_ndarray(), dtype=np.uint8))
    top, left = (covered_height - height) // 2, (covered_width - width) // 2
    return np.ascontiguousarray(image[top : top + height, left : left + width])


def _matrix(frame: av.VideoFrame) -> int:
    return int(frame.colorspace) if int(frame.colorspace) in _NAMED_COLORSPACES else int(Colorspace.ITU601)


def _range(frame: av.VideoFrame) -> int:
    full = int(frame.color_range) == int(ColorRange.JPEG) or str(frame.format.name).startswith("yuvj")
    return int(ColorRange.JPEG) if full else int(ColorRange.MPEG)


def _colour_name(frame: av.VideoFrame) -> str:
    matrix = {1: "bt709", 4: "fcc", 5: "bt601", 6: "bt601", 7: "smpte240m", 9: "bt2020"}.get(
        int(frame.colorspace), "unspecified"
    )
    spread: Literal["full", "limited"] = "full" if _range(frame) == int(ColorRange.JPEG) else "limited"
    return f"{matrix}/{spread}"


def _pixel_aspect(stream: Any, frame: av.VideoFrame) -> float:
    ratio = stream.sample_aspect_ratio
    value = float(ratio) if ratio else 1.0
    # Ratios beyond these are broken headers, not pictures.
    return value if 0.1 <= value <= 10 else 1.0


def _shown(frame: av.VideoFrame, orientation: _Orientation, aspect: float) -> tuple[float, float]:
    """Width and height as shown, pixels."""
    width, height = (frame.width * aspect, float(frame.height)) if aspect >= 1 else (float(frame.width), frame.height / aspect)
    return (height, width) if orientation.transpose else (width, height)


def _duration(frame: av.VideoFrame) -> float:
    return float(frame.duration * (frame.time_base or Fraction(0))) if frame.duration else 0.0


def _orientation(frame: av.VideoFrame) -> _Orientation:
    """Read the display matrix: x' = a x + c y, y' = b x + d y, reduced to quarter turns and mirrors."""
    try:
        matrix: Any = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:
        # PyAV knows no name for some side data (multi-view HEVC) and then reads none of it, but the angle it still gives.
        return _TURNS[-int(frame.rotation) % 360 // 90]
    if matrix is None:
        return _UPRIGHT
    a, b, _, c, d = np.frombuffer(memoryview(matrix), dtype=np.int32)[:5].tolist()
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return _Orientation(False, a < 0, d < 0)
    return _Orientation(True, c < 0, b < 0)
