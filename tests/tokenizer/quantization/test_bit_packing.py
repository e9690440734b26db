"""Bits to bytes and back."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.quantization import bit_packing
from tokenizer.quantization.scale_schedule import ScaleError, scales


@settings(max_examples=30, deadline=None)
@given(rows=st.integers(1, 7), columns=st.integers(1, 7), d=st.sampled_from([8, 16, 48]), count=st.integers(1, 3))
def test_pack_and_unpack_are_inverse(rows: int, columns: int, d: int, count: int) -> None:
    listed = scales(rows, columns)
    bits = [torch.rand(count, r, c, d) > 0.5 for r, c in listed]
    packed = bit_packing.pack(bits)
    assert packed.shape == (count, sum(r * c for r, c in listed) * d // 8)
    assert all(torch.equal(a, b) for a, b in zip(bits, bit_packing.unpack(packed, listed, d)))


def test_lowest_bit_comes_first() -> None:
    bits = [torch.tensor([1, 0, 0, 0, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]).bool().view(1, 1, 1, 16)]
    assert bit_packing.pack(bits).tolist() == [[129, 2]]


def test_wrong_lengths_are_named() -> None:
    with pytest.raises(ScaleError, match="need 130 bytes per frame"):
        bit_packing.unpack(torch.zeros(2, 3, dtype=torch.uint8), scales(8, 8), 8)
    with pytest.raises(ScaleError, match="4 bits per frame do not fill whole bytes"):
        bit_packing.pack([torch.zeros(1, 1, 1, 4, dtype=torch.bool)])
