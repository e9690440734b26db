"""Everything compiled and every kernel loaded before a stage's first step.

In:  the first batch of a stage. Out: the same weights, and a stage whose steps compile nothing.

The functions of fused_ops.py are compiled once for all numbers of tokens, so packed rows, hidden frames and text of any length need
no list of lengths. What remains is the first call in each mode: with gradients, and without for validation. Both run here, on the
first batch, as a step that is skipped: it changes neither weights nor moments (engine.py). Sampling during training does not compile
(periodic_samples.py).
"""

from __future__ import annotations

import time

import torch

from pretrain.data.loader import StepData
from pretrain.loop.job import Job, enter_stage


class WarmUp:
    """Runs a stage's first batch once more, and first, where blocks are compiled."""

    def __init__(self, active: bool) -> None:
        self.active = active
        self._stage: int | None = None

    def before(self, job: Job, item: StepData) -> bool:
        """Warm up if `item` is the first step of a stage in this process; returns whether it did. All ranks call it together."""
        at, engine = item.curriculum_step, job.engine
        if not self.active or at.stage_number == self._stage:
            return False
        self._stage = at.stage_number
        job.logger.log(f"stage {at.stage.name}: warming up (compiling takes tens of seconds when nothing is kept)")
        began = time.monotonic()
        job.compilations.new()
        window, frame_mask = enter_stage(at, engine.module, job.config)
        batch, group = item.batches[-1].to(job.ranks.device), job.groups.of(at.stage)
        if job.validation is not None:
            engine.evaluate(batch, window, group)
        loss = engine.forward(batch, window, frame_mask, group, last=True)["loss"]
        engine.backward(loss, skip=torch.ones((), dtype=torch.bool, device=loss.device))
        job.saver.before_update()
        engine.step(0.0)
        done = job.compilations.new()
        job.logger.log(
            f"stage {at.stage.name}: warm after {time.monotonic() - began:.1f} s, compiled {', '.join(done) or 'nothing'}"
        )
        return True
