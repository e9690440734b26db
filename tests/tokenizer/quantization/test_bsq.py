"""Parity with the public quantizer, and the algebra of codes."""

from __future__ import annotations

import math

import pytest
import torch

from tokenizer.quantization import bsq
from tokenizer.quantization.scale_schedule import ScaleError, scales

SCALES = scales(8, 8)


def test_quantize_gives_the_public_bits_and_sum(golden: dict[str, torch.Tensor]) -> None:
    bits, total = bsq.quantize(golden["feature"], SCALES)
    for k, found in enumerate(bits):
        assert torch.equal(found, golden[f"bits_{k}"].bool())
    assert torch.allclose(total, golden["quantized"], atol=1e-6)
    assert torch.equal(bsq.accumulate(bits, SCALES), total)


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


def test_wrong_shapes_are_named() -> None:
    with pytest.raises(ScaleError, match="the last scale is"):
        bsq.quantize(torch.zeros(1, 8, 4, 4), SCALES)
    with pytest.raises(ScaleError, match="7 bit maps for 6 scales"):
        bsq.accumulate([torch.zeros(1, 1, 1, 8)] * 7, SCALES)


def test_half_precision_features_are_quantised_in_float32() -> None:
    features = torch.randn(2, 8, 4, 4).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        bits, total = bsq.quantize(features, scales(4, 4))
    want, _ = bsq.quantize(features.float(), scales(4, 4))
    assert total.dtype == torch.float32
    assert all(torch.equal(a, b) for a, b in zip(bits, want))
