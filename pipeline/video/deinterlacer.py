"""Interlaced frames made progressive, by FFmpeg's `bwdif`: one picture a frame, at the frame's time.

In:  decoded frames in display order, each with what is known of it (`Moment`).
Out: the same, one for one. A frame that its stream does not mark as interlaced is given back as it is.

A field's missing lines are computed from the frame itself, the one before and the one after, and from nothing else, so a picture does
not depend on where decoding began: only the first frame that is decoded lacks one before, and after a seek it is left out (reader.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import av

LEAST_SIDE = 16
"""Pictures with a smaller side are left as they are: the filter wants four lines of each plane, and chroma may have a quarter of them."""


class Moment(NamedTuple):
    """One frame and what the reader knew when it was decoded."""

    time: float
    frame: av.VideoFrame
    corrupt: bool
    jumps: int
    wanted: bool = True
    """False for a frame that is only needed as the one before another."""

    @property
    def interlaced(self) -> bool:
        """Whether the stream marks the frame as interlaced, and it can be made progressive."""
        frame = self.frame
        return bool(frame.interlaced_frame) and min(frame.height, frame.width) >= LEAST_SIDE

    @property
    def shape(self) -> tuple[int, int, str]:
        """What a filter is made for."""
        return self.frame.width, self.frame.height, self.frame.format.name


class Deinterlacer:
    """Frames go in one by one and come out in order; from the first interlaced one on, each comes out when the next goes in."""

    def __init__(self) -> None:
        self._before: Moment | None = None
        self._run: _Run | None = None

    def take(self, moment: Moment) -> Iterator[Moment]:
        """Take the next frame and yield those that are ready."""
        if self._run is not None and moment.shape != self._run.shape:
            yield from self.flush()
        if self._run is None and moment.interlaced:
            self._run = _Run(moment)
            if self._before is not None and self._before.shape == moment.shape:
                self._run.push(self._before._replace(wanted=False))
        self._before = moment
        if self._run is not None:
            self._run.push(moment)
            yield from self._run.ready()
        elif moment.wanted:
            yield moment

    def flush(self) -> Iterator[Moment]:
        """Yield what is still held: nothing follows, or a picture of another shape does."""
        if self._run is not None:
            self._run.end()
            yield from self._run.ready()
        self._before = self._run = None


class _Run:
    """Frames of one shape in a filter that has the one before and the one after of each."""

    def __init__(self, first: Moment) -> None:
        self.shape = first.shape
        width, height, pixels = first.shape
        self._graph = av.filter.Graph()  # filters do not keep their graph alive, and crash the process without it
        base = first.frame.time_base
        assert base is not None, "a decoded frame with a time has a time base"
        source: Any = self._graph.add_buffer(width=width, height=height, format=av.VideoFormat(pixels), time_base=base)
        sink: Any = self._graph.add("buffersink")
        # Only what is marked as interlaced is changed; what lies between such frames goes through, to be before or after one.
        self._graph.link_nodes(
            source, self._graph.add("bwdif", "mode=send_frame:parity=auto:deint=interlaced"), sink
        ).configure()
        self._source, self._sink = source, sink
        self._waiting: list[Moment] = []

    def push(self, moment: Moment) -> None:
        self._waiting.append(moment)
        self._source.push(moment.frame)

    def end(self) -> None:
        self._source.push(None)

    def ready(self) -> Iterator[Moment]:
        """Yield each wanted frame that the filter has finished, with the time stamps that it came with."""
        while self._waiting:
            try:
                picture = self._sink.pull()
            except (BlockingIOError, EOFError):
                return
            moment = self._waiting.pop(0)
            if moment.interlaced:
                picture.pts, picture.time_base, picture.duration = (
                    moment.frame.pts,
                    moment.frame.time_base,
                    moment.frame.duration,
                )
                moment = moment._replace(frame=picture)
            if moment.wanted:
                yield moment
