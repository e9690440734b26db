"""What is measured in a step: sums over ranks, seconds by phase, FLOPs, the samples that were really read.

In:  the Objective's outputs, this rank's flags, the step's data. Out: the same `GlobalMetrics` on every rank; parts of a StepReport.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass

from torch import Tensor

from cluster.config import Config
from cluster.runtime.process_group import Ranks, pack_scalars
from pretrain.data.curriculum import StreamName
from pretrain.data.loader import StepData
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.engine import Engine
from pretrain.estimate.flops import attended_pairs, training_flops
from pretrain.model.config import ModelConfig
from pretrain.model.token_layout import Layout
from pretrain.runs.run_logger import RunLogger


class Clock:
    """Seconds by phase of one step; `restart` begins the next step."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a step."""
        self._began = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """Add the time since the last mark to `phase`."""
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def end(self) -> dict[str, float]:
        """Return seconds by phase, and `total`."""
        return {"total": time.perf_counter() - self._began, **self._seconds}


@dataclass(frozen=True)
class StepFlags:
    """What a rank tells all others in the all-reduce of each step; afterwards, the sums over ranks."""

    tokens: float = 0.0
    """Positions trained on."""
    replaced: float = 0.0
    """Corrupt samples for which others were read."""
    stop: float = 0.0
    """Ranks that were asked to stop."""
    files_written: float = 0.0
    """Ranks that have written their files of the pending checkpoint."""
    write_failed: float = 0.0
    """Ranks that could not write theirs."""


@dataclass(frozen=True)
class GlobalMetrics:
    """The Objective's outputs and the ranks' flags, summed over ranks."""

    values: dict[str, list[float]]
    flags: StepFlags

    @classmethod
    def reduce(cls, totals: Mapping[str, Tensor], ranks: Ranks, flags: StepFlags | None = None) -> GlobalMetrics:
        """Sum over ranks with one all-reduce. All ranks call it together."""
        names = sorted(totals)
        own = () if flags is None else astuple(flags)
        vector = ranks.all_reduce(pack_scalars([*(totals[name] for name in names), *own], ranks.device)).tolist()
        values, at = {}, 0
        for name in names:
            count = totals[name].numel()
            values[name] = vector[at : at + count]
            at += count
        return cls(values, StepFlags(*vector[at:]))

    @property
    def loss(self) -> float:
        """Loss of the global batch."""
        return self.values["loss"][0]

    def by_scale(self, name: str, datasets: TokenDatasets, stream: StreamName) -> dict[str, float]:
        """Return a vector over scales as a mapping; its keys are `HxW` of the scale."""
        scales = datasets.spec.scales(*datasets.grid(stream)[1:])
        return {f"{rows}x{columns}": value for (rows, columns), value in zip(scales, self.values[name])}


def read_ids(item: StepData, any_replaced: bool, ranks: Ranks, logger: RunLogger) -> list[str]:
    """Return the keys that the global batch really consists of; ranks communicate only in a step with corrupt samples."""
    ids = list(item.ids)
    if any_replaced:
        for rank, replaced in enumerate(ranks.all_gather(item.replaced)):
            for slot, key in replaced:
                logger.log(
                    f"step {item.curriculum_step.step}: sample {ids[slot]} is corrupt; rank {rank} read {key} in its place"
                )
                logger.meter.inc("train_corrupt_samples_total")
                ids[slot] = key
    return ids


def step_flops(config: Config, engine: Engine, datasets: TokenDatasets, item: StepData, window: int) -> float:
    """Return the model FLOPs of one global batch."""
    model, (frames, rows, columns) = config.get(ModelConfig), datasets.grid(item.curriculum_step.stream)
    layout, count = Layout(round(item.text), frames, datasets.spec.scales(rows, columns)), item.curriculum_step.mix.batch
    pairs = count * attended_pairs(layout, window)
    return training_flops(engine.parameters, count * layout.length, model.layers, model.width, pairs)
