"""Arrays in one buffer: the same numbers and shapes, aligned, one copy."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pretrain.attention.index_buffer import IndexBuffer


def test_views_hold_what_was_added() -> None:
    buffer, arrays = IndexBuffer(), [np.arange(5), np.arange(6, dtype=np.int32).reshape(2, 3), np.empty((0, 3), dtype=np.int64)]
    rows = [buffer.add(array) for array in arrays]
    buffer.send(torch.device("cpu"))
    for where, array in zip(rows, arrays, strict=True):
        view = buffer.view(where)
        assert view.dtype == torch.int32
        assert np.array_equal(view.numpy(), array)
        assert view.data_ptr() % 16 == buffer.view(rows[0]).data_ptr() % 16
    assert buffer.nbytes == 4 * 16


@pytest.mark.parametrize(
    "spans",
    [[(3, 7), (0, 2), (0, 2), (9, 9), (5, 6)], [(0, 40_000), (100, 50_000)], [], [(4, 4)]],
    ids=["few", "long", "none", "empty"],
)
def test_spans_are_all_their_integers(spans: list[tuple[int, int]]) -> None:
    buffer = IndexBuffer()
    rows = [buffer.add_spans(spans), buffer.add(np.arange(3)), buffer.add_spans([(7, 9)])]
    buffer.send(torch.device("cpu"))
    assert buffer.view(rows[0]).tolist() == [number for begin, end in spans for number in range(begin, end)]
    assert [buffer.view(where).tolist() for where in rows[1:]] == [[0, 1, 2], [7, 8]]
    assert all(buffer.view(where).dtype == torch.int32 for where in rows)
    assert buffer.view(rows[2]).data_ptr() % 16 == buffer.view(rows[0]).data_ptr() % 16


def test_added_arrays_are_copies() -> None:
    buffer, array = IndexBuffer(), np.arange(3, dtype=np.int32)
    rows = buffer.add(array)
    array[:] = 9
    buffer.send(torch.device("cpu"))
    assert buffer.view(rows).tolist() == [0, 1, 2]


def test_views_before_sending_are_an_error() -> None:
    buffer = IndexBuffer()
    with pytest.raises(AssertionError, match="send"):
        buffer.view(buffer.add(np.arange(3)))
