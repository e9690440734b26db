"""The training quantizer: what it returns, what gradients it passes, what it counts."""

from __future__ import annotations

import math

import torch

from tokenizer.quantization.bsq import accumulate, quantize
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


def test_frames_whose_quantizer_stops_early_show_their_coarse_scales() -> None:
    features = torch.randn(3, 8, 4, 4)
    depth = torch.tensor([1, 3, 4])
    made = straight_through(features, SCALES, [True] * 4, 100.0, depth_N=depth)
    bits = quantize(features, SCALES)[0]
    for frame, scales_used in enumerate(depth.tolist()):
        wanted = accumulate([item[frame : frame + 1] for item in bits[:scales_used]], SCALES)
        assert torch.allclose(made.quantized[frame : frame + 1], wanted, atol=1e-6)
    assert torch.allclose(made.usage_Kd[3], bits[3][2].float().mean((0, 1))), "the last scale is the third frame's alone"


def test_what_fine_scales_hold_is_lost_before_quantization_too() -> None:
    """Else the decoder would read, through the first unquantized steps, what it must find in the coarse scales."""
    features = torch.randn(2, 8, 4, 4, requires_grad=True)
    made = straight_through(features, SCALES, [True] * 4, 100.0, share=0.0, depth_N=torch.tensor([1, 4])).quantized
    assert torch.allclose(made[0], features[0].mean((1, 2), keepdim=True).expand(-1, 4, 4), atol=1e-6)
    assert torch.allclose(made[1], features[1], atol=1e-6)
    (gradient,) = torch.autograd.grad(made[0, :, 0, 0].sum(), features)
    assert torch.allclose(gradient[0], torch.full((8, 4, 4), 1 / 16)), "one place of the mean is moved by all"
    assert not gradient[1].any()


def test_commitment_does_not_pull_features_to_what_an_early_stop_left() -> None:
    """A frame of one constant is its own mean: stopping at 1x1 loses nothing, and no detail is punished for being left out."""
    detail = torch.randn(1, 8, 4, 4)
    detail = detail - detail.mean((2, 3), keepdim=True)
    flat = torch.full((1, 8, 4, 4), 1 / math.sqrt(8))
    stopped = straight_through(flat + detail, SCALES, [True] * 4, 100.0, depth_N=torch.tensor([1]))
    assert stopped.commitment.item() < 1e-6


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
