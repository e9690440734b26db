"""Whether a step may change the weights: non-finite losses, loss spikes, and when to give up.

In:  the loss of the global batch (the same number on every rank), then whether the optimizer applied the step.
Out: an empty text, or the reason to skip; TrainingHalted after too many consecutive skips. The sample ids of skipped batches are
     in RUN/skipped.jsonl.

Every rank keeps the same state and comes to the same verdict; nothing here communicates.
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
"""Applied steps against which a spike is measured (as in OLMo-core)."""
MIN_HISTORY = 32
"""Applied steps needed before a loss can count as a spike."""


class TrainingHalted(RuntimeError):
    """Too many consecutive skipped steps; the message names the reason and the file with the batches."""


class Guard:
    """Skip verdicts and the history behind them."""

    def __init__(self, spike_sigma: float, max_skips: int, dump: Path | None) -> None:
        """dump: skipped.jsonl on rank 0, None on the others."""
        self.spike_sigma, self.max_skips, self.dump = spike_sigma, max_skips, dump
        self.losses: deque[float] = deque(maxlen=WINDOW)
        self.in_a_row = 0
        self.skipped = 0

    def verdict(self, loss: float) -> str:
        """Return why the step must not be applied, or an empty text."""
        if not math.isfinite(loss):
            return "nonfinite_loss"
        if self.spike_sigma and len(self.losses) >= MIN_HISTORY:
            mean, deviation = statistics.fmean(self.losses), statistics.pstdev(self.losses)
            if loss > mean + self.spike_sigma * max(deviation, 1e-6 * abs(mean)):
                return "loss_spike"
        return ""

    def record(self, step: int, loss: float, norm: float, reason: str, ids: Sequence[str]) -> None:
        """Record the outcome of a step; `reason` is empty if it was applied."""
        if not reason:
            self.in_a_row = 0
            self.losses.append(loss)
            return
        self.in_a_row += 1
        self.skipped += 1
        if self.dump is not None:
            with JsonLines(self.dump) as lines:
                lines.write({"step": step, "reason": reason, "loss": loss, "grad_norm": norm, "sample_ids": list(ids)})

    def check(self, step: int, reason: str) -> None:
        """Raise TrainingHalted after `max_skips` consecutive skips; `reason` is that of the last one."""
        if self.in_a_row >= self.max_skips:
            raise TrainingHalted(
                f"step {step}: {self.in_a_row} consecutive steps were skipped, the last one for `{reason}`; the batches' sample ids "
                f"are in RUN/skipped.jsonl. Lower train.learning_rate, or exclude their sources (SHARDS/excluded.json), and restart"
            )

    def plain(self) -> dict[str, Any]:
        """Return JSON values for a checkpoint; floats survive JSON exactly."""
        return {"losses": list(self.losses), "in_a_row": self.in_a_row, "skipped": self.skipped}

    def restore(self, plain: dict[str, Any]) -> None:
        """Restore what `plain` returned, in this version or an older one (which had more keys)."""
        self.losses.extend(plain["losses"])
        self.in_a_row, self.skipped = plain["in_a_row"], plain["skipped"]
