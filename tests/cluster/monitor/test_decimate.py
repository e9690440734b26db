from __future__ import annotations

import math

import numpy as np
import pytest

from cluster.monitor.decimate import Bins, plain


def test_few_rows_are_all_shown() -> None:
    bins = Bins.over(2, 6, 100)
    assert bins.whole
    assert bins.rows().tolist() == [2, 3, 4, 5]
    assert bins.values(np.arange(10.0)).tolist() == [2, 3, 4, 5]


def test_one_row_is_one_point() -> None:
    assert Bins.over(0, 1, 300).values(np.array([3.5])).tolist() == [3.5]


def test_no_spike_is_lost_and_the_order_within_a_bin_is_kept() -> None:
    values = np.linspace(1.0, 0.0, 1000)
    values[[123, 777]] = 50.0, -50.0
    shown = Bins.over(0, 1000, 10).values(values)
    assert len(shown) == 20
    assert shown.max() == 50.0 and shown.min() == -50.0
    assert shown[0] == values[0] and shown[1] == values[99], "a falling curve: the larger value first"


def test_bins_without_values_are_empty_and_missing_values_hide_no_others() -> None:
    values = np.full(100, math.nan)
    values[55] = 2.0
    shown = Bins.over(0, 100, 10).values(values)
    assert np.flatnonzero(np.isfinite(shown)).tolist() == [10, 11]
    assert plain(shown)[9:12] == [None, 2.0, 2.0]


@pytest.mark.parametrize(("begin", "end"), [(0, 10_000), (137, 9_111), (5_000, 10_000)])
def test_blocks_hold_the_same_ends_as_rows(begin: int, end: int) -> None:
    values = np.random.default_rng(0).normal(size=10_000)
    values[9_990] = 99.0
    size = 16
    whole = values[: len(values) // size * size].reshape(-1, size)
    ends = np.stack([whole.min(axis=1), whole.max(axis=1)])
    bins = Bins.over(begin, end, 20)
    shown = bins.values_of_blocks(values[:end], ends, size)
    assert len(shown) == len(bins.rows())
    assert shown.max() >= values[begin:end].max() and shown.min() <= values[begin:end].min()


def test_json_has_no_nan_or_infinity() -> None:
    assert plain([1.23456789, math.nan, math.inf]) == [1.23457, None, None]
