"""Distances of feature sets against closed forms and a plain float64 reference."""

from __future__ import annotations

import numpy as np
import pytest

from tokenizer.evaluation.metrics import frechet
from tokenizer.evaluation.pretrained import ScoreError
from tokenizer.evaluation.set_distances import extrapolated_frechet, kernel_distance


def plain_kernel_distance(a: np.ndarray, b: np.ndarray) -> float:
    """The U-statistic, pair by pair."""

    def mean(x: np.ndarray, y: np.ndarray, same: bool) -> float:
        pairs = [(i, j) for i in range(len(x)) for j in range(len(y)) if not (same and i == j)]
        return sum((float(x[i] @ y[j]) / x.shape[1] + 1) ** 3 for i, j in pairs) / len(pairs)

    return mean(a, a, True) + mean(b, b, True) - 2 * mean(a, b, False)


def expected_kernel(a: np.ndarray, b: np.ndarray) -> float:
    """E (x y / d + 1)^3 of independent x ~ N(a, 1), y ~ N(b, 1)."""
    d, s = len(a), float(a @ b)
    second = s**2 + float(a @ a) + float(b @ b) + d
    third = s**3 + 3 * s * float(a @ a) + 3 * s * (float(b @ b) + d + 2)
    return third / d**3 + 3 * second / d**2 + 3 * s / d + 1


def test_kernel_distance_equals_the_plain_sum_over_pairs() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(9, 5)), draw.normal(1, 2, size=(7, 5))
    assert kernel_distance(a, b) == pytest.approx(plain_kernel_distance(a, b), rel=1e-12)


def test_kernel_distance_is_unbiased_for_gaussians() -> None:
    draw = np.random.default_rng(0)
    one, two = np.array([1.0, 0.5, 0.0]), np.array([0.0, 1.0, -1.0])
    exact = expected_kernel(one, one) + expected_kernel(two, two) - 2 * expected_kernel(one, two)
    few = [kernel_distance(draw.normal(size=(8, 3)) + one, draw.normal(size=(8, 3)) + two) for _ in range(4000)]
    error = np.std(few) / len(few) ** 0.5
    assert abs(np.mean(few) - exact) < 4 * error < 0.25 * exact
    same = [kernel_distance(draw.normal(size=(8, 3)), draw.normal(size=(8, 3))) for _ in range(2000)]
    assert abs(np.mean(same)) < 4 * np.std(same) / len(same) ** 0.5


def test_extrapolation_takes_the_bias_of_few_rows_away() -> None:
    draw = np.random.default_rng(0)
    shift = np.zeros(6)
    shift[0] = 1.0  # the true distance is 1
    plain, better = [], []
    for number in range(40):
        a, b = draw.normal(size=(64, 6)), draw.normal(size=(64, 6)) + shift
        plain.append(frechet(a, b))
        better.append(extrapolated_frechet(a, b, seed=number))
    error = np.std(better) / len(better) ** 0.5
    assert np.mean(plain) - 1 > 0.1
    assert abs(np.mean(better) - 1) < 4 * error < 0.5
    assert abs(np.mean(better) - 1) < 0.4 * (np.mean(plain) - 1)


def test_too_few_rows_are_refused() -> None:
    rows = np.zeros((15, 3))
    with pytest.raises(ScoreError, match="at least 16 clips on each side, not 15"):
        extrapolated_frechet(rows, np.zeros((40, 3)))
    with pytest.raises(ScoreError, match="at least 2 clips"):
        kernel_distance(rows[:1], rows)
