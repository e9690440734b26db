"""Verdicts on steps, and giving up after too many skips."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from pretrain.loop.guard import Guard, TrainingHalted


def test_nonfinite_losses_and_spikes_are_skipped() -> None:
    guard = Guard(spike_sigma=6.0, max_skips=10, dump=None)
    for step in range(1, 41):
        loss = 0.7 + 0.01 * math.sin(step)
        assert guard.verdict(loss) == ""
        guard.record(step, loss, 1.0, "", [])
    assert guard.verdict(math.nan) == guard.verdict(math.inf) == "nonfinite_loss"
    assert guard.verdict(0.73) == "" and guard.verdict(0.9) == "loss_spike"
    assert Guard(spike_sigma=0.0, max_skips=10, dump=None).verdict(1e9) == ""
    again = Guard(spike_sigma=6.0, max_skips=10, dump=None)
    again.restore(json.loads(json.dumps(guard.plain())))
    assert again.plain() == guard.plain() and again.verdict(0.9) == "loss_spike"


def test_it_gives_up_after_consecutive_skips_and_keeps_the_ids(tmp_path: Path) -> None:
    guard = Guard(spike_sigma=0.0, max_skips=3, dump=tmp_path / "skipped.jsonl")
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


def test_the_state_of_an_older_version_is_read() -> None:
    """It also kept gradient norms, which nothing used."""
    guard = Guard(spike_sigma=6.0, max_skips=3, dump=None)
    guard.restore({"losses": [0.75, 0.5], "norms": [0.16, 0.14], "in_a_row": 1, "skipped": 4})
    assert guard.plain() == {"losses": [0.75, 0.5], "in_a_row": 1, "skipped": 4}
