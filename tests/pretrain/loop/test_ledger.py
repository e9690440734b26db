"""The books of the steps: one behind the device, or up to date where the loop asks."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cluster.metrics import StepReport
from cluster.runtime.process_group import Ranks
from pretrain.loop import ledger
from pretrain.loop.guard import Guard, TrainingHalted
from pretrain.loop.ledger import LaunchedStep, Ledger
from pretrain.loop.step_metrics import DeviceSums, StepFlags

ALONE = Ranks(rank=0, world=1, device=torch.device("cpu"), hosts=("here",))


@pytest.fixture
def books(monkeypatch: pytest.MonkeyPatch) -> tuple[Ledger, list[StepReport]]:
    monkeypatch.setattr(ledger, "step_flops", lambda *given: 4e9)
    reports: list[StepReport] = []
    job: Any = SimpleNamespace(
        config=None, ranks=ALONE, guard=Guard(0.0, 2, None), curriculum=SimpleNamespace(steps=9), peak_flops=8e9,
        logger=SimpleNamespace(step=lambda report, steps: reports.append(report)),
        saver=SimpleNamespace(settle=lambda *flags: None, last_saved=0.0),
        engine=SimpleNamespace(memory=dict),
        datasets=SimpleNamespace(spec=SimpleNamespace(scales=lambda *grid: ((1, 1),)), grid=lambda stream: (1, 1, 1)),
    )  # fmt: skip
    return Ledger(job, tokens=100), reports


def launched(step: int, loss: float = 0.5, *, stop: float = 0.0, limit: float = math.inf) -> LaunchedStep:
    at = SimpleNamespace(
        step=step, stage_number=0, stage=SimpleNamespace(name="low"), mix=SimpleNamespace(shape="f001x16x16"), stream=("", 1)
    )
    item: Any = SimpleNamespace(curriculum_step=at, ids=("a",), replaced=(), positions=40)
    one = torch.tensor([0.5])
    totals = {"loss": torch.tensor(loss), "scale_loss": one, "scale_accuracy": one, "frame_loss": one}
    sums = DeviceSums(totals, ALONE, StepFlags(tokens=30, stop=stop, compilations=step))
    sums.send(applied=~Guard.skip(sums.loss, limit), grad_norm=torch.tensor(2.0))
    return LaunchedStep(item, sums, 1e-3, 0, limit, seconds={"total": 0.5})


def test_a_step_counts_once_when_it_is_read_and_again_only_as_a_report(books: tuple[Ledger, list[StepReport]]) -> None:
    book, reports = books
    book.report()  # of nothing
    book.add(launched(1))
    assert book.tokens == 100 and reports == []
    book.report()
    book.add(launched(2, stop=1.0))
    assert book.tokens == 130 and [report.step for report in reports] == [1] and not book.stop
    book.read()
    book.read()
    assert book.tokens == 160 and book.stop and book.job.guard.plain()["by_shape"] == {"f001x16x16": [[1, 0.5], [2, 0.5]]}
    book.report()
    assert [report.step for report in reports] == [1, 2] and book.tokens == 160
    last = reports[-1]
    assert (last.padding, last.compilations, last.mfu, last.grad_norm, last.tokens) == (0.25, 2, 1.0, 2.0, 30)


def test_a_skipped_step_has_a_reason_and_two_end_the_run(books: tuple[Ledger, list[StepReport]]) -> None:
    book, reports = books
    book.add(launched(1, math.nan))
    book.report()
    book.add(launched(2, 0.75, limit=0.6))
    with pytest.raises(TrainingHalted, match="step 2: 2 consecutive steps were skipped, the last one for `loss_spike`"):
        book.report()
    assert [report.skipped for report in reports] == ["nonfinite_loss", "loss_spike"]
    assert all(math.isnan(report.grad_norm) for report in reports) and book.job.guard.plain()["by_shape"] == {
        "f001x16x16": [[2, 0.75]]
    }
