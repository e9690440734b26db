"""Sums over ranks, seconds by phase, and the samples that were really read."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from cluster.runtime.process_group import Ranks
from pretrain.loop.step_metrics import Clock, DeviceSums, GlobalMetrics, StepFlags, read_ids

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"), hosts=("here",))


def test_flags_scalars_and_vectors_are_kept_apart() -> None:
    totals = {"loss": torch.tensor(0.25), "scale_loss": torch.tensor([1.0, 2.0]), "accuracy": torch.tensor([3.0])}
    flags = StepFlags(tokens=3.0, replaced=0.0, stop=1.0, files_written=2.0, write_failed=0.5)
    sums = DeviceSums(totals, ALONE, flags)
    assert float(sums.loss) == 0.25
    values = {"loss": [0.25], "scale_loss": [1.0, 2.0], "accuracy": [3.0]}
    assert sums.read() == GlobalMetrics(values, flags) and sums.read().loss == 0.25
    sums.send(applied=torch.tensor(True), grad_norm=torch.tensor(7.5, dtype=torch.bfloat16))
    assert sums.read() == GlobalMetrics({**values, "applied": [1.0], "grad_norm": [7.5]}, flags)
    assert DeviceSums(totals, ALONE).read() == GlobalMetrics(values, StepFlags())


def test_corrupt_samples_are_named_and_counted() -> None:
    said: list[str] = []
    counted: list[str] = []
    logger: Any = SimpleNamespace(log=said.append, meter=SimpleNamespace(inc=counted.append))
    item: Any = SimpleNamespace(ids=("a", "b"), replaced=((1, "c"),), curriculum_step=SimpleNamespace(step=7))
    assert read_ids(item, False, ALONE, logger) == ["a", "b"] and said == []
    assert read_ids(item, True, ALONE, logger) == ["a", "c"]
    assert said == ["step 7: sample b is corrupt; rank 0 read c in its place"] and counted == ["train_corrupt_samples_total"]


def test_the_clock_adds_all_time_to_phases() -> None:
    clock = Clock()
    clock.mark("data")
    clock.mark("forward")
    clock.mark("data")
    seconds = clock.end()
    assert set(seconds) == {"total", "data", "forward"}
    assert seconds["data"] + seconds["forward"] <= seconds["total"]
