"""The record of one training step, and the JSON lines file that keeps such records.

In:  what a step measured.
Out: lines of metrics.jsonl; `Meter.step` exports the same record to Prometheus.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

TAIL = 1 << 20
"""Bytes at the end of metrics.jsonl that hold a whole line."""
WAITING = 10_000
"""Most lines that wait for room on the disk; the oldest ones go first."""


@dataclass(frozen=True)
class StepReport:
    """One training step, as it goes to the console, metrics.jsonl and Prometheus. Sums are over all ranks."""

    step: int
    """The optimizer step that has just finished, counted from 1."""
    stage: int
    """Index of the curriculum stage, from 0."""
    stage_name: str
    bucket: str
    """Shape of the step's batch, such as f009x64x64."""
    loss: float
    """Nats per bit, weighted by scale, normalised over the global batch."""
    scale_loss: dict[str, float]
    """Unweighted mean loss at each scale, nats per bit; the key is the scale's `HxW`."""
    bit_accuracy: dict[str, float]
    """Fraction of bits predicted correctly at each scale; same keys."""
    grad_norm: float
    learning_rate: float
    tokens: int
    """Tokens of this step, text and video, over all ranks."""
    seconds: dict[str, float]
    """Seconds by phase as the host saw them: total, data, forward, backward, optimizer, wait (for the step before), checkpoint. On a
    GPU, forward, backward and optimizer only queue work."""
    memory: dict[str, int]
    """Bytes by kind: resident, peak, device."""
    skipped: str = ""
    """Why the weight update was skipped; empty when it was not."""
    frame_loss: list[float] = field(default_factory=list)
    """Unweighted mean loss at each latent frame, nats per bit."""
    sample_ids: list[str] = field(default_factory=list)
    """Keys of the samples of the global batch, in order."""
    mfu: float = math.nan
    """Model FLOPs utilization, 0 to 1; NaN on a device whose peak is unknown."""
    padding: float = 0.0
    """Fraction of the positions computed that are no sample's: padded text, rounded-up rows, fill samples; 0 to 1."""
    compilations: int = 0
    """Functions that torch.compile compiled since the step before, over all ranks; 0 once a stage is warm."""


class Pace:
    """Seconds that the rest of a run will take: the steps that are left, each as long as the last ones were on average."""

    def __init__(self) -> None:
        self._seconds = math.nan

    def remaining(self, report: StepReport, steps: int) -> float:
        """Take a step's duration in; return the seconds for the steps after it, of `steps`. A step that compiles is no measure."""
        total = report.seconds.get("total", 0.0)
        if math.isnan(self._seconds):
            self._seconds = total
        elif not report.compilations:
            self._seconds += 0.05 * (total - self._seconds)
        return self._seconds * (steps - report.step)


class JsonLines:
    """Appends one JSON object per line, each with one write, so that a reader may follow the file while the job runs.

    A line that cannot be written (a full disk) waits, and is written before the next one: a report never ends a job.
    """

    def __init__(self, path: Path) -> None:
        """Take the path; the file is made with its first line."""
        self.path = path
        self._handle: int | None = None
        self._waiting: deque[bytes] = deque(maxlen=WAITING)

    def write(self, record: StepReport | Mapping[str, Any]) -> str:
        """Write one record; returns what went wrong, or an empty text. NaN and infinity become null, which every JSON reader accepts."""
        plain = asdict(record) if isinstance(record, StepReport) else dict(record)
        self._waiting.append(json.dumps(_finite(plain), sort_keys=False).encode() + b"\n")
        return self._flush()

    def _flush(self) -> str:
        try:
            if self._handle is None and self._waiting:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            while self._handle is not None and self._waiting:
                _append(self._handle, self._waiting[0])
                self._waiting.popleft()
        except OSError as error:
            with contextlib.suppress(OSError):
                os.utime(self.path)  # whoever takes the file for a sign of life sees one
            return f"{self.path}: {error.strerror}"
        return ""

    def close(self) -> None:
        """Try once more to write what waits, and close the file."""
        self._flush()
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None

    def __enter__(self) -> JsonLines:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


def _append(handle: int, line: bytes) -> None:
    """Append a line as a whole or not at all. Raises OSError."""
    size, at = os.fstat(handle).st_size, 0
    try:
        while at < len(line):
            at += os.write(handle, line[at:])
    except OSError:
        if at:
            os.ftruncate(handle, size)
        raise


def last_step(path: Path) -> int:
    """Return the step of the last whole line of metrics.jsonl, 0 without one."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - TAIL))
            lines = file.read().splitlines()
    except OSError:
        return 0
    for line in reversed(lines):
        with contextlib.suppress(ValueError, KeyError, TypeError):
            return int(json.loads(line)["step"])
    return 0


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
