"""Scale lists: the fixed ones, what the rule guarantees for every other grid, and grids without a list."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenizer.quantization.scale_schedule import ScaleError, scales


def test_common_grids_have_fixed_lists() -> None:
    assert scales(8, 8) == ((1, 1), (2, 2), (3, 3), (4, 4), (6, 6), (8, 8))
    assert [rows for rows, _ in scales(16, 16)] == [1, 2, 4, 6, 8, 12, 16]
    assert scales(12, 21)[-2:] == ((8, 14), (12, 21))
    assert scales(21, 12) == tuple((rows, columns) for columns, rows in scales(12, 21)), "an upright grid is the turned one"


@given(rows=st.integers(1, 80), columns=st.integers(1, 80))
def test_scales_grow_to_the_grid(rows: int, columns: int) -> None:
    if max(rows, columns) > 8 * min(rows, columns):
        return
    found = scales(rows, columns)
    assert found[-1] == (rows, columns)
    assert all(a[0] * a[1] < b[0] * b[1] for a, b in pairwise(found))
    assert all(1 <= r <= rows and 1 <= c <= columns for r, c in found)
    assert found == tuple((r, c) for c, r in scales(columns, rows)) or rows == columns


def test_grids_without_a_list_are_named() -> None:
    with pytest.raises(ScaleError, match=r"0x4: both sides must be at least 1"):
        scales(0, 4)
    with pytest.raises(ScaleError, match=r"ratio over 8:1; add one under tokenizer\.scales"):
        scales(1, 9)
