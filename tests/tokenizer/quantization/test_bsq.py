"""Parity with the public quantiser, and the algebra of bits."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokenizer.quantization import bit_packing, bsq
from tokenizer.quantization.scale_schedule import scales

SCALES = scales(8, 8)


def test_quantize_gives_the_public_bits_and_sum(golden: dict[str, torch.Tensor]) -> None:
    bits, total = bsq.quantize(golden["feature"], SCALES)
    for k, found in enumerate(bits):
        assert torch.equal(found, golden[f"bits_{k}"].bool())
    assert torch.allclose(total, golden["quantized"], atol=1e-6)
    assert torch.equal(bsq.accumulate(bits, SCALES), total)


def test_next_inputs_equal_the_public_ones(golden: dict[str, torch.Tensor]) -> None:
    bits, _ = bsq.quantize(golden["feature"], SCALES)
    found = bsq.next_inputs(bits, SCALES, mode="area")
    assert len(found) == 5
    for k, item in enumerate(found):
        assert torch.allclose(item, golden[f"next_input_area_{k}"], atol=1e-6)


def test_requantize_gives_the_public_labels_and_inputs(golden: dict[str, torch.Tensor]) -> None:
    flips = [golden[f"flip_{k}"].bool() for k in range(5)] + [torch.zeros(3, 8, 8, 16, dtype=torch.bool)]
    labels, inputs, total = bsq.requantize(golden["feature"], SCALES, flips)
    for k, label in enumerate(labels):
        assert torch.equal(label.flatten(1, 2), golden[f"bsc_label_{k}"].bool())
    joined = torch.cat([item.flatten(2).transpose(1, 2) for item in inputs], dim=1)
    assert torch.allclose(joined, golden["bsc_input"], atol=1e-6)
    flipped = [label ^ flip for label, flip in zip(labels, flips)]
    assert torch.allclose(total, bsq.accumulate(flipped, SCALES), atol=1e-6)


def test_requantize_without_flips_is_quantize() -> None:
    features = torch.randn(3, 8, 6, 9, generator=torch.Generator().manual_seed(1))
    listed = scales(6, 9)
    bits, total = bsq.quantize(features, listed)
    labels, inputs, again = bsq.requantize(features, listed, [torch.zeros_like(item) for item in bits])
    assert all(torch.equal(a, b) for a, b in zip(bits, labels))
    assert torch.allclose(total, again, atol=1e-6)
    for a, b in zip(inputs, bsq.next_inputs(bits, listed)):
        assert torch.allclose(a, b, atol=1e-6)


def test_each_scale_lowers_the_residual() -> None:
    features = torch.nn.functional.normalize(torch.randn(4, 16, 8, 8), dim=1)
    bits, _ = bsq.quantize(features, SCALES)
    errors = [(features - bsq.accumulate(bits[:k], SCALES)).square().mean().item() for k in (4, 5, 6)]
    assert errors[2] < errors[0]


def test_codes_have_unit_length_and_bit_one_is_positive() -> None:
    bits = torch.rand(2, 3, 4, 24) > 0.5
    made = bsq.codes(bits)
    assert torch.allclose(made.norm(dim=1), torch.ones(2, 3, 4))
    assert torch.equal(made.permute(0, 2, 3, 1) > 0, bits)
    assert math.isclose(made.abs().max().item(), 1 / math.sqrt(24), rel_tol=1e-6)


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


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ValueError, match="bytes a frame"):
        bit_packing.unpack(torch.zeros(2, 3, dtype=torch.uint8), SCALES, 8)
    with pytest.raises(ValueError, match="the scales end at"):
        bsq.quantize(torch.zeros(1, 8, 4, 4), SCALES)
    with pytest.raises(ValueError, match="flip maps"):
        bsq.requantize(torch.zeros(1, 8, 8, 8), SCALES, [])


def test_half_precision_features_are_quantised_in_float32() -> None:
    features = torch.randn(2, 8, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        bits, total = bsq.quantize(features, scales(4, 4))
    want, _ = bsq.quantize(features.float(), scales(4, 4))
    assert total.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(bits, want))
