"""Whether a step may change the weights: non-finite losses, loss spikes, and when to give up.

In:  the loss of each global batch (the same number on every rank), then whether the optimizer applied the step.
Out: the limit above which a loss is a spike, `skip` for the device, the reason for the host; TrainingHalted after too many
     consecutive skips. The sample ids of skipped batches are in RUN/skipped.jsonl.

Every rank keeps the same state and comes to the same verdict; nothing here communicates. The verdict on a step is computed where
its loss is, and the host learns of it one step later. So the limit of step s is a function of the losses up to step s - 2, on every
device and whenever the host happens to know more: runs on different hardware, or stopped and continued anywhere, decide alike.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from cluster.metrics import JsonLines

WINDOW = 128
"""Applied steps against which a spike is measured (as in OLMo-core)."""
MIN_HISTORY = 32
"""Applied steps needed before a loss can count as a spike."""
DELAY = 2
"""A step is measured against the losses of steps this many and more before it."""


class TrainingHalted(RuntimeError):
    """Too many consecutive skipped steps; the message names the reason and the file with the batches."""


class Guard:
    """Skip verdicts and the history behind them."""

    def __init__(self, spike_sigma: float, max_skips: int, dump: Path | None) -> None:
        """dump: skipped.jsonl on rank 0, None on the others."""
        self.spike_sigma, self.max_skips, self.dump = spike_sigma, max_skips, dump
        self.losses: deque[tuple[int, float]] = deque(maxlen=WINDOW + DELAY - 1)
        """Step and loss of applied steps."""
        self.in_a_row = 0
        self.skipped = 0

    def limit(self, step: int) -> float:
        """Return the loss above which `step` is a spike; infinite if none is."""
        losses = [loss for at, loss in self.losses if at <= step - DELAY][-WINDOW:]
        if not self.spike_sigma or len(losses) < MIN_HISTORY:
            return math.inf
        mean, deviation = statistics.fmean(losses), statistics.pstdev(losses)
        return mean + self.spike_sigma * max(deviation, 1e-6 * abs(mean))

    @staticmethod
    def skip(loss: Tensor, limit: float) -> Tensor:
        """Return, where `loss` is, whether the step must not be applied; bool."""
        return (loss.isfinite() & (loss <= limit)).logical_not()

    @staticmethod
    def reason(loss: float, limit: float, applied: bool) -> str:
        """Return why a step was not applied, or an empty text."""
        if not math.isfinite(loss):
            return "nonfinite_loss"
        if loss > limit:
            return "loss_spike"
        return "" if applied else "nonfinite_gradient"

    def record(self, step: int, loss: float, norm: float, reason: str, ids: Sequence[str]) -> None:
        """Record the outcome of a step; `reason` is empty if it was applied."""
        if not reason:
            self.in_a_row = 0
            self.losses.append((step, loss))
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
        steps, losses = [step for step, _ in self.losses], [loss for _, loss in self.losses]
        return {"losses": losses, "steps": steps, "in_a_row": self.in_a_row, "skipped": self.skipped}

    def restore(self, plain: dict[str, Any]) -> None:
        """Restore what `plain` returned, in this version or an older one (with more keys, and without steps)."""
        losses = plain["losses"]
        self.losses.extend(zip(plain.get("steps", [0] * len(losses)), losses, strict=True))
        self.in_a_row, self.skipped = plain["in_a_row"], plain["skipped"]
