from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.demo.budget import Budget, Stopwatch, fit, per_step, stage_seconds

PIXELS = {"small": 100.0, "large": 400.0}


def line(seconds: float, bucket: str = "small", stage: int = 0) -> dict[str, object]:
    return {"seconds": {"total": seconds}, "bucket": bucket, "stage": stage}


def test_all_steps_where_they_fit_and_fewer_where_they_do_not() -> None:
    assert fit(300, [0.1], [1400], 200) == (1400,)
    assert fit(70, [0.1], [1400], 200) == (700,)
    assert fit(1, [0.1], [1400], 200) == (200,) == fit(-5, [0.1], [1400], 200)
    assert fit(1, [0.1], [100], 200) == (100,), "never more than the recipe's"


def test_stages_are_cut_by_the_same_factor() -> None:
    first, second = fit(100, [0.5, 1.0], [200, 100], 20)
    assert (first, second) == (100, 50) and first * 0.5 + second * 1.0 <= 100


def test_seconds_per_step_follow_pixels_and_leave_out_the_first_steps() -> None:
    shares = {"small": 0.5, "large": 0.5}
    lines = [line(50.0)] * 4 + [line(0.1)] * 6
    assert per_step(lines, PIXELS, shares) == pytest.approx(0.25), "large was not timed: four times the pixels"
    lines += [line(0.5, "large")] * 6
    assert per_step(lines, PIXELS, shares) == pytest.approx(3.6 / 3000 * 250)


def test_a_stage_takes_its_median_without_the_first_step() -> None:
    lines = [line(9.0), line(0.2), line(0.3), line(0.4), line(9.0, stage=1), line(1.0, stage=1)]
    assert stage_seconds(lines, 2) == (0.3, 1.0)


def test_what_was_chosen_is_kept(tmp_path: Path) -> None:
    assert Budget.read(tmp_path, 8.0) == Budget(8.0)
    made = Budget(8.0, 900, (110, 90), 0.2, (0.4, 0.9), {"tokenizer_steps": 1400, "stage_steps": [200, 160]})
    made.write(tmp_path)
    assert Budget.read(tmp_path, 3.0) == made, "also if other minutes are asked for"
    assert made.overrides() == ["tokenizer.training.steps=900", "curriculum.stages.0.steps=110", "curriculum.stages.1.steps=90"]
    assert Budget(8.0).overrides() == []


def test_time_of_earlier_starts_counts(tmp_path: Path) -> None:
    log = tmp_path / "commands.jsonl"
    assert 0 <= Stopwatch(log).seconds < 100
    log.write_text("".join(json.dumps({"seconds": each}) + "\n" for each in (100.0, 23.5)))
    assert Stopwatch(log).seconds >= 123.5
