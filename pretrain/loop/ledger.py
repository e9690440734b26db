"""What the host knows of the steps, one step behind the device.

In:  steps as they are launched: their data, and sums that the device will send.
Out: guard, token count, pending checkpoint and report of each step, in order; whether the job was asked to stop.

A step is launched, then the one before it is settled, whose sums arrived while this one was queued. At a checkpoint, a validation,
samples and the last step, the loop asks for the newest step too (`read`), and so waits for the device.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from cluster.config import Config
from cluster.metrics import StepReport
from pretrain.data.curriculum import CurriculumStep
from pretrain.data.loader import StepData
from pretrain.loop.guard import Guard, Kind
from pretrain.loop.job import Job
from pretrain.loop.step_metrics import DeviceSums, GlobalMetrics, read_ids, step_flops


@dataclass
class LaunchedStep:
    """A step whose kernels are queued."""

    item: StepData
    sums: DeviceSums
    """With the scalars `applied` and `grad_norm`."""
    learning_rate: float
    window: int
    limit: float
    """The loss above which the step is a spike."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By phase, as the host saw them."""


@dataclass(frozen=True)
class _Known:
    """A step whose sums have been read."""

    metrics: GlobalMetrics
    reason: str
    ids: list[str]


def kind_of(at: CurriculumStep) -> Kind:
    """Return what the guard compares a step with: steps of its stage and shape."""
    return at.stage_number, at.mix.shape


class Ledger:
    """The books of one rank; all ranks make the same calls and come to the same state."""

    def __init__(self, job: Job, tokens: int) -> None:
        self.job, self.tokens = job, tokens
        self.stop = False
        """Whether any rank was asked to stop, as of the newest step read."""
        self._newest: LaunchedStep | None = None
        self._known: _Known | None = None

    def add(self, step: LaunchedStep) -> None:
        """Take over a step that was launched. The one before must have been reported."""
        assert self._newest is None
        self._newest = step

    def read(self) -> None:
        """Wait for the newest step's sums; guard, token count and pending checkpoint then include it."""
        step, job = self._newest, self.job
        if step is None or self._known is not None:
            return
        metrics = step.sums.read()
        flags, at = metrics.flags, step.item.curriculum_step
        reason = Guard.reason(metrics.loss, step.limit, metrics.values["applied"][0] > 0)
        ids = read_ids(step.item, flags.replaced > 0, job.ranks, job.logger)
        job.guard.record(at.step, metrics.loss, self._norm(metrics), reason, ids, kind_of(at))
        self.tokens += round(flags.tokens)
        self.stop = self.stop or flags.stop > 0
        job.saver.settle(flags.files_written, flags.write_failed)
        self._known = _Known(metrics, reason, ids)

    def report(self) -> None:
        """Report the newest step, if there is one. Raises TrainingHalted after too many skipped steps in succession."""
        self.read()
        if self._newest is None or self._known is None:
            return
        step, known, job = self._newest, self._known, self.job
        self._newest = self._known = None
        metrics, at, config = known.metrics, step.item.curriculum_step, job.config
        tokens = round(metrics.flags.tokens)
        report = StepReport(
            step=at.step, stage=at.stage_number, stage_name=at.stage.name, bucket=at.mix.shape,
            loss=metrics.loss, scale_loss=metrics.by_scale("scale_loss", job.datasets, at.stream),
            bit_accuracy=metrics.by_scale("scale_accuracy", job.datasets, at.stream), grad_norm=self._norm(metrics),
            learning_rate=step.learning_rate, tokens=tokens, seconds=step.seconds, memory=job.engine.memory(),
            skipped=known.reason, frame_loss=metrics.values["frame_loss"], sample_ids=known.ids,
            mfu=self._mfu(step, config), padding=max(0.0, 1.0 - tokens / step.item.positions), compilations=round(metrics.flags.compilations),
        )  # fmt: skip
        # The step's checkpoint is published in a later `settle`: no resume finds one whose step is missing from metrics.jsonl.
        job.logger.step(report, job.curriculum.steps)
        job.guard.check(at.step, known.reason)
        if job.saver.last_saved:
            job.logger.meter.set("train_checkpoint_last_success_timestamp_seconds", job.saver.last_saved)

    @staticmethod
    def _norm(metrics: GlobalMetrics) -> float:
        """Return the norm of the gradient; NaN if it was not applied."""
        return metrics.values["grad_norm"][0] if metrics.values["applied"][0] > 0 else math.nan

    def _mfu(self, step: LaunchedStep, config: Config) -> float:
        flops = step_flops(config, self.job.engine, self.job.datasets, step.item, step.window)
        return flops / step.seconds["total"] / self.job.peak_flops
