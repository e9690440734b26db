"""The training quantizer: what it returns, what gradients it passes, what it counts."""

from __future__ import annotations

import math

import torch

from tokenizer.quantization.bsq import quantize
from tokenizer.quantization.scale_schedule import scales
from tokenizer.training.autoencoder import straight_through

SCALES = scales(4, 4)


def test_it_forwards_what_the_codec_quantises_to() -> None:
    features = torch.randn(3, 8, 4, 4)
    made = straight_through(features, SCALES, [True] * 4, 100.0)
    assert torch.allclose(made.quantized, quantize(features, SCALES)[1], atol=1e-6)


def test_gradients_pass_straight_through() -> None:
    features = torch.randn(2, 8, 4, 4, requires_grad=True)
    weight = torch.randn(2, 8, 4, 4)
    (gradient,) = torch.autograd.grad(
        (straight_through(features, SCALES, [True] * 4, 100.0).quantized * weight).sum(), features
    )
    assert torch.equal(gradient, weight)


def test_commitment_pulls_features_to_their_codes() -> None:
    features = (5 * torch.randn(2, 8, 4, 4)).requires_grad_()
    before = straight_through(features, SCALES, [True] * 4, 100.0).commitment
    (gradient,) = torch.autograd.grad(before, features)
    after = straight_through(features - gradient, SCALES, [True] * 4, 100.0).commitment
    assert after < before


def test_dropped_scales_leave_no_trace() -> None:
    features = torch.randn(2, 8, 4, 4)
    made = straight_through(features, SCALES, [False, False, False, True], 100.0)
    single = quantize(features, (SCALES[-1],))[1]
    assert torch.allclose(made.quantized, single, atol=1e-6)
    assert made.usage_Kd[:3].isnan().all()
    assert not made.usage_Kd[3].isnan().any()


def test_unquantised_passes_the_features_on() -> None:
    features = torch.randn(2, 8, 4, 4)
    made = straight_through(features, SCALES, [True] * 4, 100.0, share=0.0)
    assert torch.equal(made.quantized, features)
    assert made.commitment > 0


def test_a_part_of_the_error_passes_small_differences_on_with_their_gradient() -> None:
    """Two features that the quantizer cannot tell apart: bits alone lose the difference, half of the error leaves half of it."""
    first = torch.full((1, 8, 4, 4), 0.5, requires_grad=True)
    second = first.detach() + 0.01
    half, other = (straight_through(x, SCALES, [True] * 4, 100.0, share=0.5).quantized for x in (first, second))
    whole, same = (straight_through(x, SCALES, [True] * 4, 100.0).quantized for x in (first, second))
    assert torch.allclose(whole, same, atol=1e-6)
    assert torch.allclose(other - half, torch.full_like(second, 0.005), atol=1e-6)
    (gradient,) = torch.autograd.grad(half.sum(), first)
    assert torch.equal(gradient, torch.ones_like(first))


def test_entropy_is_lowest_for_sure_and_balanced_bits() -> None:
    sign = torch.ones(64, 8, 1, 1)
    sign[::2] = -1
    one = ((1, 1),)
    balanced = straight_through(sign, one, [True], 100.0).entropy
    constant = straight_through(torch.ones(64, 8, 1, 1), one, [True], 100.0).entropy
    unsure = straight_through(torch.randn(64, 8, 1, 1), one, [True], 0.01).entropy * 0.01 / 100
    assert math.isclose(balanced.item(), -8 * math.log(2) / 100, rel_tol=1e-3)
    assert balanced < constant
    assert balanced < unsure
