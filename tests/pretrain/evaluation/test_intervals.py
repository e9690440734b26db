"""Intervals cover what they should, about as often as they say."""

from __future__ import annotations

import numpy as np
import pytest

from pretrain.evaluation import intervals
from tokenizer.evaluation.metrics import frechet


def share(hits: list[bool]) -> float:
    return float(np.mean(hits))


def test_bootstrap_of_a_mean_covers_it() -> None:
    draw, hits = np.random.default_rng(0), []
    for number in range(400):
        low, high = intervals.of_mean(draw.exponential(2.0, 40), seed=number) or (0, 0)
        hits.append(low <= 2.0 <= high)
    assert 0.88 <= share(hits) <= 0.97  # skewed values and 40 clips: a little below 95 %


def test_an_interval_of_seeds_covers_the_mean_with_three_of_them() -> None:
    draw = np.random.default_rng(0)
    found = [intervals.of_seeds(draw.normal(5, 1, 3).tolist()) or (0, 0) for _ in range(1000)]
    assert 0.93 <= share([low <= 5 <= high for low, high in found]) <= 0.97


def test_an_interval_of_a_distance_covers_what_such_sets_give_on_average() -> None:
    """The Frechet distance of 60 against 60 rows, whose mean over many pairs of sets is known from many pairs."""
    draw = np.random.default_rng(0)

    def pair() -> tuple[np.ndarray, np.ndarray]:
        return draw.normal(size=(60, 2)), draw.normal(size=(60, 2)) * 1.5 + 1

    mean = np.mean([frechet(*pair()) for _ in range(600)])
    hits = []
    for number in range(150):
        low, high = intervals.of_distance(*pair(), frechet, seed=number) or (0, 0)
        hits.append(low <= mean <= high)
    assert 0.86 <= share(hits) <= 0.99


def test_rows_of_one_clip_are_drawn_together() -> None:
    """Four equal rows of each clip are one clip's worth of knowledge: the interval must not shrink."""
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(40, 2)), draw.normal(size=(40, 2)) + 1

    def gap(x: np.ndarray, y: np.ndarray) -> float:
        return float(np.abs(x.mean(0) - y.mean(0)).sum())

    once = intervals.of_distance(a, b, gap)
    four = intervals.of_distance(a.repeat(4, axis=0), b.repeat(4, axis=0), gap, rows=4)
    assert once is not None and four == pytest.approx(once)


def test_too_few_give_none() -> None:
    assert intervals.of_mean([1.0]) is None and intervals.of_seeds([1.0]) is None
    assert intervals.of_distance(np.zeros((7, 2)), np.zeros((9, 2)), frechet) is None
