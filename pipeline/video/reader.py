"""One open video: its frames in display order with their times.

In:  the path of a local file.
Out: (seconds, frame) pairs; every failure is a `VideoError` with a one-word reason.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import chain, islice
from pathlib import Path
from types import TracebackType
from typing import Any

import av

from pipeline.video.clock import BEGINNING, Clock, Stamp, is_regular, is_shuffled, usual_step
from pipeline.video.container import VideoError, open_file, regular
from pipeline.video.deinterlacer import Deinterlacer, Moment
from pipeline.video.device import Device


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
            self._container = open_file(self.path, accelerator)
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
        self._max_pixels = max_pixels
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
        self.is_picture = self._container.format.name == "image2" or self._container.format.name.endswith("_pipe")
        # Half a picture is an error; half a frame of a video is a corrupt frame.
        context.options = {"max_pixels": str(max_pixels), **({"err_detect": "explode"} if self.is_picture else {})}
        self.stream: Any = stream
        self.codec = str(context.name)
        self._step = 1 / Fraction(stream.average_rate) if stream.average_rate else Fraction(1, 25)
        self._clock = Clock(self._step)
        self._regular: bool | None = None
        self._judged = False
        self._landing: Fraction | None = None
        self._incomplete: set[int | None] = set()
        self._after_error = False
        self._newest: Moment | None = None
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
        return float(self._clock.first) if self._clock.first is not None else 0.0

    @property
    def corrupt(self) -> bool:
        """Whether the newest frame was decoded with errors, or after such a frame and before the next key frame."""
        return self._newest is not None and self._newest.corrupt

    @property
    def dropped(self) -> int:
        """Frames so far that had no place in the file's clock."""
        return self._clock.dropped

    @property
    def jumps(self) -> int:
        """Jumps of the file's clock up to the newest frame, which is the first after one if this has risen with it."""
        return 0 if self._newest is None else self._newest.jumps

    def frames(self) -> Iterator[tuple[float, av.VideoFrame]]:
        """Yield (seconds from the first frame, frame) in display order, strictly rising in time, to the video's end.

        Interlaced frames are made progressive. Raises VideoError("damaged") at the first packet that does not decode.
        """
        deinterlacer = Deinterlacer()
        broken: VideoError | None = None
        try:
            for moment in self._decoded():
                for self._newest in deinterlacer.take(moment):
                    yield self._newest.time, self._newest.frame
        except VideoError as error:
            broken = error
        for self._newest in deinterlacer.flush():
            yield self._newest.time, self._newest.frame
        if broken is not None:
            raise broken

    def _decoded(self) -> Iterator[Moment]:
        """Yield the frames as they are decoded; after a seek none, unless a place to begin at lies before the target."""
        lacking: Fraction | None = None
        try:
            for packet in self._packets():
                if packet.size:
                    self._clock.packet(_stamp(packet))
                    if packet.is_corrupt:  # the container knows of missing parts that the decoder conceals in silence
                        self._incomplete.add(packet.pts)
                for frame in packet.decode():
                    target, time = self._landing, self._place(frame)
                    if time is None:
                        continue
                    if self._landing is not None:
                        if time > self._landing:
                            return
                        continue
                    if lacking is not None and time > lacking:
                        return
                    moment = Moment(float(time - (self._clock.first or 0)), frame, self._after_error, self._clock.jumps)
                    # The first interlaced frame after a seek lacks the one before; it only is the one before.
                    lacking = target if moment.interlaced else None
                    yield moment._replace(wanted=lacking is None)
        except av.error.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise VideoError("memory", f"{self.path}: decoding needs more memory than pipeline.limits.memory_gb") from error
            raise VideoError("damaged", f"{self.path}: decoding stops at {self._position()}: {error.strerror}") from error

    def _packets(self) -> Iterator[Any]:
        """Return the packets from here on; the file is judged by the first ones before any of them is decoded."""
        packets: Iterator[Any] = self._container.demux(self.stream)
        if self._judged:
            return packets
        first: list[Any] = []
        broken: av.error.FFmpegError | None = None
        try:
            first.extend(islice(packets, BEGINNING))
        except av.error.FFmpegError as error:
            broken = error
        context = self.stream.codec_context
        stamps = [_stamp(packet) for packet in first if packet.size]
        self._clock.step = usual_step(stamps, self._step)
        self._clock.shuffled = is_shuffled(stamps, reorders=bool(context.has_b_frames))
        self._judged = True
        return chain(first, packets if broken is None else _raising(broken))

    def _place(self, frame: Any) -> Fraction | None:
        """Return the time of a frame; None if it has no place, or while a place to begin decoding at has not been reached."""
        if self._beat is not None:
            self._beat()
        if self._device is not None and not self._in_software:
            self._in_software = self.stream.codec_context.pix_fmt != self._device.pixel_format
            self._device.software[self.codec] += self._in_software
        broken = frame.is_corrupt or frame.pts in self._incomplete
        clean = frame.key_frame and not broken
        self._after_error = not clean and (self._after_error or broken)
        pts = None if frame.pts is None else Fraction(frame.pts) * Fraction(frame.time_base)
        if self._landing is None:
            return self._clock.frame(pts)
        if clean and pts is not None and pts <= self._landing:
            self._landing = None
            self._clock.last = pts
        return pts

    def _position(self) -> str:
        if self._clock.last is None or self._clock.first is None:
            return "the first frame"
        return f"{float(self._clock.last - self._clock.first):.3f} s"

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
        """Move to before `seconds` from the first frame, which must have been decoded. Only where `is_seekable`.

        `frames` then begins with a key frame of the decoder that is clean and not later than that, or yields nothing if there is none.
        Raises VideoError("unseekable"), after which only `rewind` leads back.
        """
        assert self._clock.first is not None, "seek needs the clock of the first frame"
        target = self._clock.first + Fraction(seconds)
        offset = math.floor(target / Fraction(self.stream.time_base))
        try:
            self._container.seek(offset, stream=self.stream, backward=True)
        except av.error.FFmpegError as error:
            raise VideoError("unseekable", f"{self.path}: cannot seek to {seconds:.3f} s: {error.strerror}") from error
        self._landing = target

    def rewind(self) -> None:
        """Begin anew with the first frame."""
        try:
            self._container.close()
            self._container = open_file(self.path, None if self._device is None else self._device.accelerator())
        except av.error.FFmpegError as error:
            raise VideoError("unreadable", f"{self.path}: {error.strerror}") from error
        self._open(self._max_pixels)

    def is_seekable(self) -> bool:
        """Whether frames have the same times wherever decoding begins: the file's clock is regular from beginning to end.

        The first call reads all packets of the file, and decodes none.
        """
        if self._clock.shuffled or self._clock.jumps or self._clock.dropped:
            return False
        if self._regular is None:
            try:
                with open_file(self.path, None) as container:
                    packets = container.demux(container.streams.best("video"))
                    self._regular = is_regular(_stamp(packet) for packet in packets if packet.size)
            except av.error.FFmpegError:  # it breaks off; decoding through says where
                self._regular = False
        return self._regular


def _raising(error: Exception) -> Iterator[Any]:
    raise error
    yield  # a generator, which raises when its turn comes


def _stamp(packet: Any) -> Stamp:
    base = Fraction(packet.time_base)
    pts, dts = (None if value is None else Fraction(value) * base for value in (packet.pts, packet.dts))
    return Stamp(pts, dts, packet.is_corrupt)
