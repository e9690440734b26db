"""Verdicts on steps, and giving up after too many skips."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from cluster.metrics import JsonLines
from pretrain.loop.guard import DELAY, MIN_HISTORY, WINDOW, Guard, TrainingHalted


def test_nonfinite_losses_and_spikes_are_skipped() -> None:
    guard = Guard(spike_sigma=6.0, max_skips=10, dump=None)
    for step in range(1, 41):
        assert guard.limit(step) == math.inf if step < MIN_HISTORY + DELAY else 0.73 < guard.limit(step) < 0.9
        guard.record(step, 0.7 + 0.01 * math.sin(step), 1.0, "", [])
    limit = guard.limit(42)
    for loss, reason in ((math.nan, "nonfinite_loss"), (math.inf, "nonfinite_loss"), (0.9, "loss_spike"), (0.73, "")):
        # On the device and on the host.
        assert bool(guard.skip(torch.tensor(loss, dtype=torch.float64), limit)) == bool(reason)
        assert guard.reason(loss, limit, applied=not reason) == reason
    assert guard.reason(0.73, limit, applied=False) == "nonfinite_gradient"
    off = Guard(spike_sigma=0.0, max_skips=10, dump=None)
    off.restore(guard.plain())
    assert off.limit(42) == math.inf and off.reason(1e9, math.inf, applied=True) == ""
    assert bool(off.skip(torch.tensor(math.inf), math.inf)) and not bool(off.skip(torch.tensor(1e9), math.inf))
    again = Guard(spike_sigma=6.0, max_skips=10, dump=None)
    again.restore(json.loads(json.dumps(guard.plain())))
    assert again.plain() == guard.plain() and again.limit(42) == limit


def test_a_limit_does_not_depend_on_what_the_host_knows_already() -> None:
    """It reads the metrics of a step one step late, or at once at a checkpoint."""
    late, early = (Guard(spike_sigma=3.0, max_skips=10, dump=None) for _ in range(2))
    losses = [0.7 + 0.01 * math.sin(step**2) for step in range(1, 301)]
    for step, loss in enumerate(losses, 1):
        early_limit = early.limit(step)  # every loss before `step` is recorded
        assert late.limit(step) == early_limit  # that of step - 1 is not yet
        if step > 1:
            late.record(step - 1, losses[step - 2], 1.0, "", [])
        early.record(step, loss, 1.0, "", [])
    window = losses[300 - WINDOW - 1 : 299]  # of step 301: 172 to 299
    mean = sum(window) / WINDOW
    assert early.limit(301) == pytest.approx(mean + 3 * (sum((x - mean) ** 2 for x in window) / WINDOW) ** 0.5)


def test_it_gives_up_after_consecutive_skips_and_keeps_the_ids(tmp_path: Path) -> None:
    guard = Guard(spike_sigma=0.0, max_skips=3, dump=JsonLines(tmp_path / "skipped.jsonl").write)
    for step in (1, 2):
        guard.record(step, math.nan, math.nan, "nonfinite_loss", [f"k{step}"])
    guard.record(3, 0.5, 1.0, "", [])
    for step in (4, 5):
        guard.record(step, math.nan, math.nan, "nonfinite_loss", [f"k{step}"])
        guard.check(step, "nonfinite_loss")
    guard.record(6, 0.5, math.inf, "nonfinite_gradient", ["k6"])
    with pytest.raises(
        TrainingHalted, match=r"step 6: 3 consecutive steps were skipped, the last one for `nonfinite_gradient`"
    ):
        guard.check(6, "nonfinite_gradient")
    lines = [json.loads(line) for line in (tmp_path / "skipped.jsonl").read_text().splitlines()]
    assert [line["sample_ids"] for line in lines] == [["k1"], ["k2"], ["k4"], ["k5"], ["k6"]]
    assert lines[0]["loss"] is None and guard.skipped == 5


def level(guard: Guard, first: int, count: int, loss: float, kind: tuple[int, str]) -> list[str]:
    """Train `count` steps at about the same loss, as the loop does; returns why steps were skipped."""
    reasons = []
    for step in range(first, first + count):
        value = loss + 0.001 * math.sin(step)
        reasons.append(guard.reason(value, guard.limit(step, kind), applied=True))
        guard.record(step, value, 1.0, reasons[-1], [], kind)
    return reasons


def test_a_harder_stage_and_another_shape_are_no_spikes() -> None:
    guard = Guard(spike_sigma=6.0, max_skips=10, dump=None)
    assert not any(level(guard, 1, 60, 0.4, (0, "f009x32x32")))
    assert not any(level(guard, 61, 60, 0.7, (0, "f001x32x32"))), "another shape of the same stage"
    assert not any(level(guard, 121, 60, 0.6, (1, "f009x32x32"))), "the same shape in another stage"
    assert guard.limit(181, (1, "f009x32x32")) < 0.62 and guard.limit(181, (1, "f001x32x32")) == math.inf
    again = Guard(spike_sigma=6.0, max_skips=10, dump=None)
    again.restore(json.loads(json.dumps(guard.plain())))
    assert again.limit(181, (1, "f009x32x32")) == guard.limit(181, (1, "f009x32x32"))


def test_a_level_that_has_changed_for_good_is_taken_for_normal_before_the_run_halts() -> None:
    """Say, new data. The losses of skipped steps count, or nothing would ever be applied again."""
    guard = Guard(spike_sigma=6.0, max_skips=10, dump=None)
    assert not any(level(guard, 1, 200, 0.4, (0, "a")))
    reasons = level(guard, 201, 40, 0.6, (0, "a"))
    assert reasons[0] == "loss_spike" and 2 < reasons.count("loss_spike") < 10 and not any(reasons[9:])


def test_the_state_of_an_older_version_is_read() -> None:
    """It mixed the losses of all stages and shapes: they are left out."""
    guard = Guard(spike_sigma=6.0, max_skips=3, dump=None)
    guard.restore({"losses": [0.75, 0.5], "norms": [0.16, 0.14], "in_a_row": 1, "skipped": 4})
    assert guard.plain() == {"stage": -1, "by_shape": {}, "in_a_row": 1, "skipped": 4}
