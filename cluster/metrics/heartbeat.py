"""Heartbeats: each rank of a run says by itself, every few seconds, that it lives, at which step and in which phase.

In:  the run folder and the rank, in the rank; the run folder, in whoever watches.
Out: RUN/heartbeats/rank-N, rewritten by a thread of the rank; RUN/log/rank-N.stacks when RUN/heartbeats/dump is touched.

A rank that waits for others in a collective goes on beating, so the one that is stopped, swapped out or cut off is the one that is
silent. Files are opened anew for each beat, which is when network file systems look for changes.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import socket
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType

from cluster.runtime.job_protocol import LAUNCH

EVERY = 5.0
"""Seconds between two beats."""
FOLDER = "heartbeats"
START = "start"
"""Phase of a rank that loads: what it imports, reads and compiles may keep its thread from beating."""
DUMP = "dump"
"""File of that folder; when it is touched, every rank writes the stacks of its threads."""
_SIZE = 512
"""Bytes of a beat: of one size, so that it is rewritten in place and never read half."""


@dataclass(frozen=True)
class Beat:
    """What a rank last said."""

    rank: int
    host: str
    pid: int
    time: float
    """Unix time by the rank's own clock."""
    step: int
    """The step that it works on; 0 before the first."""
    phase: str
    """What it does: start, data, step, checkpoint, validation, samples, warm-up."""
    step_seconds: float = 0.0
    """Duration of its last step."""
    data_seconds: float = 0.0
    """Seconds of it that this rank waited for its own data."""
    resident: int = 0
    """Bytes of main memory."""
    device: int = 0
    """Bytes of device memory."""
    launch: str = ""
    """Token of the launch that started the rank; empty if none did."""


def path_of(run: Path, rank: int) -> Path:
    """Return RUN/heartbeats/rank-N."""
    return run / FOLDER / f"rank-{rank}"


def stacks_of(run: Path, rank: int) -> Path:
    """Return RUN/log/rank-N.stacks."""
    return run / "log" / f"rank-{rank}.stacks"


def read(run: Path) -> dict[int, Beat]:
    """Return the last beat of every rank that has sent one."""
    found: dict[int, Beat] = {}
    with contextlib.suppress(FileNotFoundError):
        for path in (run / FOLDER).iterdir():
            if path.name.startswith("rank-"):
                with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # half made, or not ours
                    plain = json.loads(path.read_bytes())
                    beat = Beat(**{field.name: plain[field.name] for field in fields(Beat) if field.name in plain})
                    found[beat.rank] = beat
    return dict(sorted(found.items()))


def clear(run: Path) -> None:
    """Remove the beats of an earlier start; one rank does it before any beats."""
    for path in (run / FOLDER).glob("rank-*"):
        path.unlink(missing_ok=True)


def ask_for_stacks(run: Path) -> None:
    """Ask every rank that still beats to append the stacks of its threads to RUN/log/rank-N.stacks."""
    path = run / FOLDER / DUMP
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"{time.time()}\n")


class Heartbeat:
    """Context manager around a rank's work. `at` says what the rank does now; nothing here raises for a disk that is full or gone."""

    def __init__(self, run: Path, rank: int, *, every: float = EVERY) -> None:
        self.run, self.rank = run, rank
        self._every = every
        self._now = (0, START)
        self._took = (0.0, 0.0, 0, 0)
        self._asked = self._request()
        self._closed, self._awake = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def at(self, step: int, phase: str) -> None:
        """Say which step the rank works on, and in which phase. Costs no more than an assignment."""
        started = self._now[1] == START
        self._now = (step, phase)
        if started:
            self._awake.set()  # that it has started is told at once

    def took(self, seconds: Mapping[str, float], memory: Mapping[str, int]) -> None:
        """Say what the last step took: seconds by phase (total, data), bytes by kind (resident, device)."""
        self._took = (
            round(seconds.get("total", 0.0), 4), round(seconds.get("data", 0.0), 4), memory.get("resident", 0), memory.get("device", 0)
        )  # fmt: skip

    def _request(self) -> str:
        try:
            return (self.run / FOLDER / DUMP).read_text()
        except OSError:
            return ""

    def _beat(self) -> None:
        host, pid, launch = socket.gethostname(), os.getpid(), os.environ.get(LAUNCH, "")
        while True:
            step, phase = self._now
            beat = Beat(self.rank, host, pid, round(time.time(), 3), step, phase, *self._took, launch)
            with contextlib.suppress(OSError):
                path = path_of(self.run, self.rank)
                path.parent.mkdir(parents=True, exist_ok=True)
                with path.open("r+b" if path.exists() else "wb") as file:
                    file.write(json.dumps(asdict(beat)).encode().ljust(_SIZE - 1) + b"\n")
            asked = self._request()
            if asked != self._asked:
                self._asked = asked
                self._dump()
            self._awake.wait(self._every)
            self._awake.clear()
            if self._closed.is_set():
                return

    def _dump(self) -> None:
        with contextlib.suppress(OSError):
            path = stacks_of(self.run, self.rank)
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("a") as file:
                step, phase = self._now
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {self.rank}, step {step}, {phase}\n")
                file.flush()
                faulthandler.dump_traceback(file, all_threads=True)
                file.write("\n")

    def __enter__(self) -> Heartbeat:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._closed.set()
        self._awake.set()
        self._thread.join()
