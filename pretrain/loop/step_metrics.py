"""What is counted in a step: sums over ranks, seconds by phase, FLOPs, and the words at the start of a run.

Called by: train.py.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor

from cluster.config import Config
from cluster.runtime.process_group import Ranks, pack_scalars
from pretrain.data.loader import StepData
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.engine import Engine
from pretrain.estimate import flops
from pretrain.model.config import ModelConfig
from pretrain.runs.run_logger import Journal


class Clock:
    """Seconds by phase of one step; `restart` begins the next one."""

    def __init__(self) -> None:
        self.restart()

    def restart(self) -> None:
        """Begin a step."""
        self._began = self._last = time.perf_counter()
        self._seconds: dict[str, float] = {}

    def mark(self, phase: str) -> None:
        """Book the time since the last mark to `phase`."""
        now = time.perf_counter()
        self._seconds[phase] = self._seconds.get(phase, 0.0) + now - self._last
        self._last = now

    def end(self) -> dict[str, float]:
        """Return seconds by phase, and `total`."""
        return {"total": time.perf_counter() - self._began, **self._seconds}


@dataclass(frozen=True)
class Figures:
    """The Objective's figures over the global batch, and flags summed over ranks."""

    values: dict[str, list[float]]
    flags: tuple[float, ...]

    @classmethod
    def summed(cls, totals: Mapping[str, Tensor], flags: Sequence[float], ranks: Ranks) -> Figures:
        """Sum over ranks with one all-reduce."""
        names = sorted(totals)
        vector = ranks.all_reduce(pack_scalars([totals[name] for name in names] + list(flags), ranks.device)).tolist()
        values, at = {}, 0
        for name in names:
            count = totals[name].numel()
            values[name] = vector[at : at + count]
            at += count
        return cls(values, tuple(vector[at:]))

    @property
    def loss(self) -> float:
        """Loss of the global batch."""
        return self.values["loss"][0]

    def by_scale(self, name: str, corpus: TokenDatasets, stream: tuple[str, int]) -> dict[str, float]:
        """Return a figure keyed by `HxW` of the scale."""
        scales = corpus.spec.scales(*corpus.grid(stream)[1:])
        return {f"{rows}x{columns}": value for (rows, columns), value in zip(scales, self.values[name])}


def read_ids(item: StepData, any_replaced: bool, ranks: Ranks, journal: Journal) -> list[str]:
    """Return the keys that the global batch was made of; only a step with corrupt samples asks the other ranks."""
    ids = list(item.ids)
    if any_replaced:
        for rank, replaced in enumerate(ranks.all_gather(item.replaced)):
            for slot, key in replaced:
                journal.say(f"step {item.curriculum_step.step}: sample {ids[slot]} is corrupt; rank {rank} read {key} in its place")
                journal.meter.inc("train_corrupt_samples_total")
                ids[slot] = key
    return ids


def step_flops(config: Config, engine: Engine, corpus: TokenDatasets, item: StepData, window: int) -> float:
    """Return the model FLOPs of one global batch."""
    model, (frames, rows, columns) = config.get(ModelConfig), corpus.grid(item.curriculum_step.stream)
    scales = [r * c for r, c in corpus.spec.scales(rows, columns)]
    text, count = round(item.text), item.curriculum_step.mix.batch
    tokens = count * (text + frames * sum(scales))
    pairs = count * flops.causal_pairs(text, frames, scales, window)
    return flops.training_flops(engine.parameters, tokens, model.layers, model.width, pairs)
