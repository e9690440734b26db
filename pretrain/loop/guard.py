"""Verdicts on a step before its weights change: non-finite, spike; and when to give up.

In:  the loss of the global batch (the same number on every rank), then whether the optimizer applied the step.
Out: "" or the reason to skip; TrainingHalted after too many skips in a row, with the batches' ids in RUN/skipped.jsonl.
Called by: train.py. Every rank holds the same state and reaches the same verdict; nothing here communicates.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.metrics import JsonLines

WINDOW = 128
"""Applied steps that a spike is measured against (OLMo-core uses the same)."""
LEAST = 32
"""Steps in the window before a spike can be called."""


class TrainingHalted(RuntimeError):
    """Too many skipped steps in a row; the message names the reason and the file with the batches."""


class Guard:
    """Skip verdicts and the history behind them."""

    def __init__(self, spike_sigma: float, max_skips: int, dump: Path | None) -> None:
        """`dump`: skipped.jsonl on rank 0, None elsewhere."""
        self.spike_sigma, self.max_skips, self.dump = spike_sigma, max_skips, dump
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.norms: deque[float] = deque(maxlen=WINDOW)
        self.in_a_row = 0
        self.skipped = 0

    def verdict(self, loss: float) -> str:
        """Return why the step must not be applied, or an empty text."""
        if not math.isfinite(loss):
            return "nonfinite_loss"
        if self.spike_sigma and len(self.losses) >= LEAST:
            mean, deviation = statistics.fmean(self.losses), statistics.pstdev(self.losses)
            if loss > mean + self.spike_sigma * max(deviation, 1e-6 * abs(mean)):
                return "loss_spike"
        return ""

    def record(self, step: int, loss: float, norm: float, reason: str, ids: Sequence[str]) -> None:
        """Take the outcome of a step."""
        if not reason:
            self.in_a_row = 0
            self.losses.append(loss)
            self.norms.append(norm)
            return
        self.in_a_row += 1
        self.skipped += 1
        if self.dump is not None:
            with JsonLines(self.dump) as lines:
                lines.write({"step": step, "reason": reason, "loss": loss, "grad_norm": norm, "sample_ids": list(ids)})

    def check(self, step: int, reason: str) -> None:
        """Raise TrainingHalted after `max_skips` skips in a row, `reason` being the last one's."""
        if self.in_a_row >= self.max_skips:
            raise TrainingHalted(
                f"step {step}: {self.in_a_row} skipped steps in a row, the last for `{reason}`; the batches' sample ids are in "
                f"RUN/skipped.jsonl. Lower train.learning_rate, or exclude their sources (SHARDS/excluded.json), and start again"
            )

    def plain(self) -> dict[str, Any]:
        """JSON values for a checkpoint; floats survive JSON exactly."""
        return {
            "losses": list(self.losses),
            "norms": list(self.norms),
            "in_a_row": self.in_a_row,
            "skipped": self.skipped,
        }

    def restore(self, plain: dict[str, Any]) -> None:
        """Read `plain()` back."""
        self.losses.extend(plain["losses"])
        self.norms.extend(plain["norms"])
        self.in_a_row, self.skipped = plain["in_a_row"], plain["skipped"]
