"""When each frame is shown: from what a file stamps its frames with, whatever that is.

In:  the stamps of packets, and of the frames that come out of the decoder, which come in the order of display.
Out: seconds that rise strictly, the frames at which the file's clock jumps, and how many frames had no place in it.

A file's clock is not to be believed where it contradicts the order of display:

- Packets stamped in the order of decoding although frames are reordered (AVI cannot do otherwise): the k-th frame has the k-th
  smallest stamp.
- A frame without a stamp comes one interval after the frame before it.
- A stamp far behind the frame before (two recordings joined, a clock that began anew), or so far ahead that a picture would stand
  still for seconds, is a jump: time goes on by one interval, and what follows is another shot.
- Other frames that are not after the one before are dropped and counted.

What is shown at a time is a function of the file from its first packet on. A clock that is regular throughout gives the same times
wherever decoding begins, so only such files are read from the middle (`is_regular`).
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from itertools import pairwise
from statistics import median_low

HOLD = Fraction(2)
"""Seconds for which a picture may always stand still; longer only where frames are usual that far apart."""
USUAL = 8
"""Intervals that a picture may stand still."""
BEHIND = Fraction(1)
"""Seconds behind the frame before, from which a stamp is a jump of the clock and not a glitch."""
GLITCHES = 3
"""So many frames in a row behind the last one are a jump, too."""
REORDER = 17
"""Frames within which a decoder reorders: 16 is what H.264 and HEVC allow."""
SHOWN = 4
"""Intervals from which the usual one is believed."""
BEGINNING = 64
"""Packets by which a file is judged before its first frame."""


@dataclass(frozen=True)
class Stamp:
    """A packet's place in the file's clock, seconds."""

    pts: Fraction | None
    dts: Fraction | None
    corrupt: bool = False


@dataclass
class Clock:
    """Times of one video, decoded from its beginning."""

    step: Fraction
    """Interval of frames as the file names it, until intervals have been seen."""
    shuffled: bool = False
    """The stamps are those of the order of decoding."""
    first: Fraction | None = None
    """The first frame's stamp."""
    last: Fraction | None = None
    """Time of the newest frame, in the clock of `first` without its jumps."""
    jumps: int = 0
    dropped: int = 0
    _offset: Fraction = Fraction(0)
    _behind: int = 0
    _heap: list[Fraction] = field(default_factory=list)
    _intervals: deque[Fraction] = field(default_factory=lambda: deque(maxlen=32))

    def packet(self, stamp: Stamp) -> None:
        """Take note of a packet that goes to the decoder."""
        if self.shuffled and stamp.pts is not None:
            heapq.heappush(self._heap, stamp.pts)

    def frame(self, pts: Fraction | None) -> Fraction | None:
        """Return the time of the next frame; None if it has no place. `jumps` has risen if a shot begins with it."""
        if self.shuffled and self._heap:
            pts = heapq.heappop(self._heap)
        if self.last is None:
            self.first = self.last = Fraction(0) if pts is None else pts
            return self.last
        ahead = None if pts is None else pts + self._offset - self.last
        if ahead is not None and 0 < ahead <= HOLD:
            self._intervals.append(ahead)
        elif ahead is None or self._is_jump(ahead):
            # A frame without a stamp has no stamp to jump from.
            interval = self._interval()
            self.jumps += ahead is not None
            self._offset += Fraction(0) if ahead is None else interval - ahead
            ahead = interval
        elif ahead <= 0:
            self.dropped += 1
            self._behind += 1
            return None
        self._behind = 0
        self.last += ahead
        return self.last

    def _is_jump(self, ahead: Fraction) -> bool:
        if ahead <= 0:
            return ahead < -BEHIND or self._behind + 1 >= GLITCHES
        return ahead > max(HOLD, USUAL * self._interval())

    def _interval(self) -> Fraction:
        return median_low(self._intervals) if self._intervals else self.step


def usual_step(stamps: Iterable[Stamp], named: Fraction) -> Fraction:
    """Return the interval of frames by a file's first packets, and as the file names it where there are too few to tell.

    A show of slides, a picture every five seconds, is often named as one of thirty frames a second.
    """
    known = sorted(stamp.pts for stamp in stamps if stamp.pts is not None)
    steps = [b - a for a, b in pairwise(known) if b > a]
    return max(named, median_low(steps)) if len(steps) >= SHOWN else named


def is_shuffled(stamps: Iterable[Stamp], *, reorders: bool) -> bool:
    """Whether packets are stamped in the order of decoding although the decoder reorders. stamps: of a file's first packets."""
    known = [stamp.pts for stamp in stamps if stamp.pts is not None]
    return reorders and len(known) > 2 and all(a < b for a, b in pairwise(known))


def is_regular(stamps: Iterable[Stamp]) -> bool:
    """Whether frames of these packets, in the order of decoding, have the times of their stamps wherever decoding begins."""
    heap: list[Fraction] = []
    last: Fraction | None = None

    def follows() -> bool:
        nonlocal last
        before, last = last, heapq.heappop(heap)
        return before is None or 0 < last - before <= HOLD

    for stamp in stamps:
        if stamp.pts is None or stamp.corrupt:
            return False
        heapq.heappush(heap, stamp.pts)
        if len(heap) > REORDER and not follows():
            return False
    while heap:
        if not follows():
            return False
    return True
