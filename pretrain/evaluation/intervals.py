"""Confidence intervals of scores, at 95 %: over clips by resampling, over seeds by Student's t.

In:  one value per clip, two feature sets, or one value per seed.
Out: (low, high); None where there are too few.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

Interval = tuple[float, float]
Features = NDArray[np.float64]

LEVEL = 0.95
_T = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145, 2.131)
"""97.5 % points of Student's t for 1, 2, ... degrees of freedom."""
_MEANS, _HALVES = 2000, 100


def of_mean(values_N: Sequence[float] | NDArray[np.float64], *, seed: int = 0) -> Interval | None:
    """Return the bootstrap interval of the mean of one value per clip (percentiles of resampled means)."""
    values = np.asarray(values_N, dtype=np.float64)
    if len(values) < 2:
        return None
    draw = np.random.default_rng(seed)
    means = values[draw.integers(0, len(values), (_MEANS, len(values)))].mean(1)
    low, high = np.quantile(means, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    return low, high


def of_distance(
    a_NF: Features, b_NF: Features, distance: Callable[[Features, Features], float], *, rows: int = 1, seed: int = 0
) -> Interval | None:
    """Return the interval of a distance of two sets, from random halves of both (drawn without replacement).

    rows: of each clip, which are drawn together. None for fewer than 8 clips on a side.

    A bootstrap repeats rows, which lowers the rank of a covariance and puts equal pairs into a kernel: it shifts and narrows such
    distances. A half drawn without replacement has the spread that the whole set has between corpora (a mean of n/2 of n rows has
    the variance s^2/n), and no equal rows. The halves' own bias is taken away: their distances are moved to the whole sets'.
    """
    sets = [x.reshape(-1, rows, x.shape[1]) for x in (a_NF, b_NF)]
    if min(map(len, sets)) < 8:
        return None
    draw = np.random.default_rng(seed)
    found = []
    for _ in range(_HALVES):
        halves = [x[draw.choice(len(x), len(x) // 2, replace=False)] for x in sets]
        left, right = (half.reshape(-1, half.shape[2]) for half in halves)
        found.append(distance(left, right))
    moved = np.array(found) - np.mean(found) + distance(a_NF, b_NF)
    low, high = np.quantile(moved, ((1 - LEVEL) / 2, (1 + LEVEL) / 2)).tolist()
    return low, high


def of_seeds(values: Sequence[float]) -> Interval | None:
    """Return Student's interval of the mean of one value per seed."""
    if len(values) < 2:
        return None
    freedom = len(values) - 1
    t = _T[freedom - 1] if freedom <= len(_T) else 1.96 + 2.5 / freedom
    half = t * float(np.std(values, ddof=1)) / len(values) ** 0.5
    middle = float(np.mean(values))
    return middle - half, middle + half
