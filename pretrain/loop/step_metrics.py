"""What is measured in a step: sums over ranks, seconds by phase, FLOPs, the samples that were really read.

In:  the Objective's outputs, this rank's flags, the step's data. Out: the same `GlobalMetrics` on every rank; parts of a StepReport.

The sums are made where the Objective runs. `DeviceSums` are what a GPU has yet to compute: the loop sends them to the host behind
the step and reads them one step later, so neither ever waits for the other.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from cluster.config import Config
from cluster.runtime.process_group import Ranks
from pretrain.attention.token_layout import Layout, sent
from pretrain.data.curriculum import StreamName
from pretrain.data.loader import StepData
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.engine import Engine
from pretrain.estimate.flops import attended_pairs, training_flops
from pretrain.model.config import ModelConfig
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
    compilations: float = 0.0
    """Functions compiled since the all-reduce of the step before."""


@dataclass(frozen=True)
class GlobalMetrics:
    """The Objective's outputs and the ranks' flags, summed over ranks."""

    values: dict[str, list[float]]
    flags: StepFlags

    @property
    def loss(self) -> float:
        """Loss of the global batch."""
        return self.values["loss"][0]

    def by_scale(self, name: str, datasets: TokenDatasets, stream: StreamName) -> dict[str, float]:
        """Return a vector over scales as a mapping; its keys are `HxW` of the scale."""
        scales = datasets.spec.scales(*datasets.grid(stream)[1:])
        return {f"{rows}x{columns}": value for (rows, columns), value in zip(scales, self.values[name])}


class DeviceSums:
    """Sums over ranks that the device may not have made yet. All ranks make and read them together."""

    def __init__(self, totals: Mapping[str, Tensor], ranks: Ranks, flags: StepFlags | None = None) -> None:
        """Begin one all-reduce of the Objective's outputs and this rank's flags."""
        self._sizes = {name: totals[name].numel() for name in sorted(totals)}
        own = torch.tensor(() if flags is None else astuple(flags), dtype=torch.float64)
        parts = [totals[name].detach().flatten().double() for name in self._sizes]
        self._vector = ranks.all_reduce(torch.cat([*parts, sent(own, ranks.device)]))
        self._host = self._vector
        self._arrived: torch.cuda.Event | None = None

    @property
    def loss(self) -> Tensor:
        """Loss of the global batch, a scalar on the device."""
        names = list(self._sizes)
        return self._vector[sum(self._sizes[name] for name in names[: names.index("loss")])]

    def send(self, **more: Tensor) -> None:
        """Copy the sums to the host as soon as they are there, with further scalars, which are the same on all ranks already."""
        self._sizes = {**dict.fromkeys(more, 1), **self._sizes}
        scalars = [value.detach().to(self._vector).flatten() for value in more.values()]
        self._host = vector = torch.cat([*scalars, self._vector])
        if vector.is_cuda:
            self._host = torch.empty(vector.shape, dtype=vector.dtype, pin_memory=True)
            self._host.copy_(vector, non_blocking=True)
            self._arrived = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call,unused-ignore]
            self._arrived.record()  # type: ignore[no-untyped-call,unused-ignore]

    def read(self) -> GlobalMetrics:
        """Wait for the sums, and return them."""
        if self._arrived is not None:
            self._arrived.synchronize()  # type: ignore[no-untyped-call,unused-ignore]
        vector = self._host.tolist()
        values, at = {}, 0
        for name, size in self._sizes.items():
            values[name] = vector[at : at + size]
            at += size
        return GlobalMetrics(values, StepFlags(*vector[at:]))


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
