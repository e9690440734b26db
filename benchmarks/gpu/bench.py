"""What every case is given: the device, the shapes, a folder to work in; and how its time is taken."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[2]
Figures = dict[str, Any]
"""What a case measured: a flat record."""


class CannotMeasure(Exception):
    """A case that this card or this clone cannot run; the message is one line and says what to change."""


@dataclass(frozen=True)
class Bench:
    """One run of the benchmark."""

    device: torch.device
    dry: bool
    """Tiny shapes in float32 on a CPU, through the same code: everything but the speed is real."""
    work: Path
    """Folder for shards and runs; removed at the end."""
    out: Path
    """Folder of the results."""
    name: str = ""
    """Of the card."""
    memory: int = 0
    """Bytes of the card; 0 on a CPU."""

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.dry else torch.bfloat16

    def synchronize(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def reset_peak(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        """Most bytes allocated since `reset_peak`."""
        return int(torch.cuda.max_memory_allocated(self.device)) if self.device.type == "cuda" else 0

    def allocated(self) -> int:
        return int(torch.cuda.memory_allocated(self.device)) if self.device.type == "cuda" else 0

    def seconds(self, call: Callable[[], object], *, warm: int = 3, rounds: int = 20) -> float:
        """Median seconds on the device, by events. A wait is queued first, so that launching is hidden as it is inside a model."""
        for _ in range(warm):
            call()
        if self.device.type != "cuda":
            return median(self.wall(call, warm=0, rounds=rounds))
        pairs = []
        for _ in range(rounds):
            begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            torch.cuda._sleep(8_000_000)  # about 4 ms
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
            torch.cuda.synchronize(self.device)
        return median(begin.elapsed_time(end) / 1e3 for begin, end in pairs)

    def wall(self, call: Callable[[], object], *, warm: int = 3, rounds: int = 20) -> list[float]:
        """Seconds of each call, synchronized before and after."""
        for _ in range(warm):
            call()
        taken = []
        for _ in range(rounds):
            self.synchronize()
            began = time.perf_counter()
            call()
            self.synchronize()
            taken.append(time.perf_counter() - began)
        return taken

    def pipelined(self, call: Callable[[], object], *, rounds: int = 10) -> float:
        """Seconds per call of `rounds` calls, synchronized before the first and after the last only."""
        self.synchronize()
        began = time.perf_counter()
        for _ in range(rounds):
            call()
        self.synchronize()
        return (time.perf_counter() - began) / rounds

    def random(self, *shape: int, scale: float = 1.0) -> Tensor:
        return torch.randn(*shape, device=self.device, dtype=self.dtype) * scale


def spread(values: Sequence[float]) -> float:
    """(largest - smallest) / median: what differs less than this is noise."""
    return (max(values) - min(values)) / median(values)
