"""Whether a step may change the weights: non-finite losses, loss spikes, and when to give up.

In:  the loss of each global batch (the same number on every rank), its stage and shape, then whether the optimizer applied the step.
Out: the limit above which a loss is a spike, `skip` for the device, the reason for the host; TrainingHalted after too many
     consecutive skips. The sample ids of skipped batches are in RUN/skipped.jsonl.

A loss is measured against those of its own stage and shape, whose level says nothing about another one's. Every finite loss is
remembered, also that of a skipped step, so a level that has changed for good is taken for normal after a few steps.

Every rank keeps the same state and comes to the same verdict; nothing here communicates. The verdict on a step is computed where
its loss is, and the host learns of it one step later. So the limit of step s is a function of the losses up to step s - 2, on every
device and whenever the host happens to know more: runs on different hardware, or stopped and continued anywhere, decide alike.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

Kind = tuple[int, str]
"""What a step is: number of its stage, name of its shape."""
WINDOW = 128
"""Steps of one stage and shape against which a spike is measured (as in OLMo-core)."""
MIN_HISTORY = 32
"""Steps of the stage and shape needed before a loss can count as a spike."""
DELAY = 2
"""A step is measured against the losses of steps this many and more before it."""


class TrainingHalted(RuntimeError):
    """Too many consecutive skipped steps; the message names the reason and the file with the batches."""


class Guard:
    """Skip verdicts and the history behind them."""

    def __init__(self, spike_sigma: float, max_skips: int, dump: Callable[[Mapping[str, Any]], None] | None) -> None:
        """dump: takes a record of each skipped step (rank 0)."""
        self.spike_sigma, self.max_skips, self.dump = spike_sigma, max_skips, dump
        self._stage = -1
        self._losses: dict[str, deque[tuple[int, float]]] = {}
        """Step and loss of the latest steps of this stage, by shape."""
        self.in_a_row = 0
        self.skipped = 0

    def limit(self, step: int, kind: Kind = (0, "")) -> float:
        """Return the loss above which `step` is a spike; infinite if none is."""
        known = self._losses.get(kind[1], ()) if kind[0] == self._stage else ()
        losses = [loss for at, loss in known if at <= step - DELAY][-WINDOW:]
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

    def record(self, step: int, loss: float, norm: float, reason: str, ids: Sequence[str], kind: Kind = (0, "")) -> None:
        """Record the outcome of a step; `reason` is empty if it was applied."""
        if kind[0] != self._stage:
            self._stage, self._losses = kind[0], {}
        if math.isfinite(loss):
            self._losses.setdefault(kind[1], deque(maxlen=WINDOW + DELAY - 1)).append((step, loss))
        if not reason:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.skipped += 1
        if self.dump is not None:
            self.dump({"step": step, "reason": reason, "loss": loss, "grad_norm": norm, "sample_ids": list(ids)})

    def check(self, step: int, reason: str) -> None:
        """Raise TrainingHalted after `max_skips` consecutive skips; `reason` is that of the last one."""
        if self.in_a_row >= self.max_skips:
            raise TrainingHalted(
                f"step {step}: {self.in_a_row} consecutive steps were skipped, the last one for `{reason}`; the batches' sample ids "
                f"are in RUN/skipped.jsonl. Lower train.learning_rate, or exclude their sources (SHARDS/excluded.json), and restart"
            )

    def plain(self) -> dict[str, Any]:
        """Return JSON values for a checkpoint; floats survive JSON exactly."""
        losses = {shape: [list(pair) for pair in pairs] for shape, pairs in self._losses.items()}
        return {"stage": self._stage, "by_shape": losses, "in_a_row": self.in_a_row, "skipped": self.skipped}

    def restore(self, plain: dict[str, Any]) -> None:
        """Restore what `plain` returned. Losses of an older version, which mixed stages and shapes, are left out."""
        self._stage = int(plain.get("stage", -1))
        for shape, pairs in plain.get("by_shape", {}).items():
            self._losses[shape] = deque(((int(step), float(loss)) for step, loss in pairs), maxlen=WINDOW + DELAY - 1)
        self.in_a_row, self.skipped = plain["in_a_row"], plain["skipped"]
