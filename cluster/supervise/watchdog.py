"""Detects a job that still runs but makes no progress: its ranks wait for each other, or one of them is silent.

In:  RUN/metrics.jsonl, which gets a line per step; RUN/heartbeats (cluster/metrics/heartbeat.py).
Out: one call of `on_stall` with the reason, which names the ranks.

How long a step may take follows from the steps before: ten times the longest of the last ones, at least a minute. Before the first step,
and while the ranks say that they validate, sample, compile, save or wait for data, only the configured limits hold.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from cluster.metrics import heartbeat
from cluster.metrics.heartbeat import Beat

TIMES, LEAST = 10.0, 60.0
"""A step may take so many times as long as the longest of the last KEPT, and at least so many seconds."""
KEPT = 50
FRESH = 3 * heartbeat.EVERY
"""Seconds within which some other rank must have beaten for one to count as silent: else the disk of the run folder is."""


@dataclass(frozen=True)
class StallLimit:
    """What shows progress, and how long it may stay unchanged."""

    file: Path
    """A healthy job appends to it at each step."""
    seconds: float
    """Most seconds between two steps, whatever the ranks do; 0: no limit."""
    start: float = 0.0
    """Most seconds until the first step; 0: `seconds`."""
    run: Path | None = None
    """Run folder with heartbeats; None: without."""
    silence: float = 0.0
    """Seconds without a heartbeat after which a rank counts as lost, if others beat and no step ends; 0: never."""


class Watchdog:
    """Context manager; while it is open, `on_stall(reason)` is called once if there is no progress for too long."""

    def __init__(self, limit: StallLimit, on_stall: Callable[[str], None]) -> None:
        self._limit, self._on_stall = limit, on_stall
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._poll, name="watchdog", daemon=True)
        self._steps: deque[float] = deque(maxlen=KEPT)
        self._began = time.monotonic()
        self._beats: dict[int, tuple[Beat, float]] = {}
        self._before = {} if limit.run is None else heartbeat.read(limit.run)
        """What an earlier start has left."""

    def _state(self) -> tuple[int, int]:
        try:
            found = self._limit.file.stat()
        except FileNotFoundError:
            return (0, 0)
        return (found.st_mtime_ns, found.st_size)

    def _poll(self) -> None:
        limits = [each for each in (self._limit.seconds, self._limit.start, self._limit.silence) if each]
        last, since, first = self._state(), self._began, True
        while not self._closed.wait(min(5.0, *(each / 10 for each in limits))):
            now, at = self._state(), time.monotonic()
            if now != last:
                if not first:
                    self._steps.append(at - since)
                last, since, first = now, at, False
                continue
            self._listen(at)
            reason = self._silent(at, since) or self._slow(at - since, first)
            if reason:
                self._on_stall(reason)
                return

    def _listen(self, at: float) -> None:
        """Note when each rank's beat last changed, by this machine's clock: those of other hosts may differ."""
        if self._limit.run is not None:
            for rank, beat in heartbeat.read(self._limit.run).items():
                known = self._beats.get(rank)
                if beat != self._before.get(rank) and (known is None or known[0] != beat):
                    self._beats[rank] = (beat, at)

    def _silent(self, at: float, since: float) -> str:
        """Return why the job is lost if some ranks are silent while others beat; else an empty string."""
        limit = self._limit.silence
        if not limit or at - since <= limit:
            return ""
        gone = {
            rank: (beat, at - heard)
            for rank, (beat, heard) in self._beats.items()
            if at - heard > limit and beat.phase != heartbeat.START  # that has a limit of its own
        }
        if not gone or not any(at - heard <= FRESH for _, heard in self._beats.values()):
            return ""
        quiet = "; ".join(f"{_who(beat)} for {age:.0f} s" for beat, age in list(gone.values())[:8])
        return f"no heartbeat of {quiet}{_more(len(gone) - 8)}, while others beat and no step ends"

    def _slow(self, still: float, first: bool) -> str:
        """Return why the job is lost if nothing moves for too long; else an empty string."""
        limit = (self._limit.start or self._limit.seconds) if first else self._limit.seconds
        beats = {rank: beat for rank, (beat, _) in self._beats.items()}
        if not first and self._steps and beats and all(beat.phase == "step" for beat in beats.values()):
            usual = max(LEAST, TIMES * max(self._steps))
            limit = min(limit, usual) if limit else usual
        if not limit or still <= limit:
            return ""
        what = "no step has ended since the start, " if first and beats else ""
        return f"{what}{self._limit.file} has not changed for {limit:g} s{_summary(beats)}"

    def __enter__(self) -> Watchdog:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._thread.join()


def _who(beat: Beat) -> str:
    return f"rank {beat.rank} ({beat.host}, step {beat.step}, {beat.phase})"


def _summary(beats: Mapping[int, Beat]) -> str:
    """Return what the ranks are at, those that are at the same together."""
    at: dict[tuple[int, str], list[int]] = {}
    for rank, beat in beats.items():
        at.setdefault((beat.step, beat.phase), []).append(rank)
    said = [f"{phase} of step {step}: {_ranks(ranks)}" for (step, phase), ranks in sorted(at.items())]
    return f" ({'; '.join(said[:4])})" if said else ""


def _ranks(ranks: Sequence[int]) -> str:
    return (
        f"rank {ranks[0]}"
        if len(ranks) == 1
        else f"{len(ranks)} ranks, {', '.join(map(str, ranks[:8]))}{_more(len(ranks) - 8)}"
    )


def _more(count: int) -> str:
    return f" and {count} more" if count > 0 else ""
