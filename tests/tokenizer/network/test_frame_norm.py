"""The norm against float64 at means of 0 to 30, its gradients, and what its bits depend on; the whole network against float64."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from tests.tokenizer.conftest import shake
from tokenizer.config import NetworkConfig
from tokenizer.network.frame_norm import SMALL, FrameNorm, clips_of, frames_of, group_count
from tokenizer.network.network import Network
from tokenizer.quantization.bsq import quantize
from tokenizer.quantization.scale_schedule import scales

LAST = torch.channels_last_3d
SHAPES = [
    ((1, 32, 2, 128, 128), 32),
    ((2, 24, 3, 64, 40), 4),
    ((1, 16, 2, 24, 24), 1),
    ((2, 8, 3, 9, 9), 4),
    ((1, 16, 1, 300, 300), 16),
]


@pytest.fixture
def threads() -> Iterator[None]:
    """A test that changes the number of threads; it is one again afterwards."""
    yield
    torch.set_num_threads(1)


def made(channels: int, groups: int, *, act: bool = True) -> FrameNorm:
    norm = FrameNorm(channels, groups, act=act)
    torch.nn.init.normal_(norm.norm.weight)
    torch.nn.init.normal_(norm.norm.bias)
    return norm


@pytest.mark.parametrize("mean", [0.0, 3.0, 30.0])
@pytest.mark.parametrize(("shape", "groups"), SHAPES)
def test_values_and_gradients_are_those_of_float64(shape: tuple[int, ...], groups: int, mean: float) -> None:
    torch.manual_seed(0)
    norm = made(shape[1], groups)
    x = (torch.randn(shape) + mean).contiguous(memory_format=LAST).requires_grad_()
    wide = x.detach().double().requires_grad_()
    weight, offset = (each.detach().double().requires_grad_() for each in (norm.norm.weight, norm.norm.bias))
    wanted = clips_of(F.silu(F.group_norm(frames_of(wide).contiguous(), groups, weight, offset, 1e-6)), shape[0])
    grad = torch.randn(shape)
    wanted.backward(grad.double())
    found = norm(x, 2)
    assert bool((found[:, :, :2] == 0).all())
    found[:, :, 2:].backward(grad)
    with torch.no_grad():
        assert torch.equal(norm(x, 2), found), "the same bits without gradients"
    # 2e-2 is what torch's own kernel for this memory layout reaches at a mean of 30.
    near = 2e-5 if mean == 30 else 4e-6
    assert (found[:, :, 2:] - wanted).abs().max() < near
    for one, other in ((x, wide), (norm.norm.weight, weight), (norm.norm.bias, offset)):
        assert one.grad is not None and other.grad is not None
        assert (one.grad - other.grad).abs().max() < near * max(1, other.grad.abs().max().item())


@pytest.mark.parametrize("act", [True, False])
def test_a_bias_before_the_norm_and_a_norm_without_silu(act: bool) -> None:
    torch.manual_seed(0)
    norm, bias, x = made(16, 4, act=act), torch.randn(16), torch.randn(1, 16, 2, 40, 40)
    with torch.no_grad():
        found = norm(x, 0, bias)
        wanted = norm(x + bias.view(1, -1, 1, 1, 1))
        plain = norm.norm(frames_of(x + bias.view(1, -1, 1, 1, 1)).contiguous())
    assert torch.equal(found, wanted)
    assert (frames_of(found) - (F.silu(plain) if act else plain)).abs().max() < 4e-6


@pytest.mark.parametrize("side", [8, 64])
def test_bfloat16_is_rounded_once(side: int) -> None:
    torch.manual_seed(0)
    norm = made(16, 4).to(torch.bfloat16)
    x = torch.randn(1, 16, 2, side, side).bfloat16()
    wide = made(16, 4).double()
    wide.load_state_dict(norm.state_dict())
    with torch.no_grad():
        found, wanted = norm(x), wide(x.double())
    assert found.dtype == torch.bfloat16
    assert (found.double() - wanted).abs().max() < (2**-7 if side * side * 16 <= SMALL else 2**-8) * wanted.abs().max()


def test_the_result_depends_on_neither_threads_nor_other_frames(threads: None) -> None:
    torch.manual_seed(0)
    norm, x = made(32, 8), torch.randn(2, 32, 3, 50, 50)
    with torch.no_grad():
        whole = norm(x)
        for count in (2, 4):
            torch.set_num_threads(count)
            assert torch.equal(norm(x), whole)
        assert torch.equal(norm(x[1:, :, 2:]), whole[1:, :, 2:])


def test_no_frame_gives_no_frame() -> None:
    norm = made(4, 2)
    assert norm(torch.zeros(1, 4, 0, 8, 8)).shape == (1, 4, 0, 8, 8)
    with torch.no_grad():
        assert norm(torch.zeros(1, 4, 0, 8, 8)).shape == (1, 4, 0, 8, 8)


def test_groups_are_a_divisor() -> None:
    assert [group_count(c, 32) for c in (8, 48, 64, 33)] == [8, 24, 32, 11]


def distance(network: Network, video: torch.Tensor, latents: torch.Tensor) -> tuple[float, float, float]:
    """Largest error of features and picture in parts of the largest value, and the share of bits that differ from float64's."""
    with torch.no_grad():
        features, picture = network.encoder(video), network.decoder(latents)
        network.double()
        exact, shown = network.encoder(video.double()), network.decoder(latents.double())
        network.float()
    listed = scales(*features.shape[3:])
    bits, wanted = (
        torch.cat([each.flatten() for each in quantize(f.float().transpose(1, 2).flatten(0, 1).contiguous(), listed)[0]])
        for f in (features, exact)
    )
    return (
        ((features - exact).abs().max() / exact.abs().max()).item(),
        ((picture - shown).abs().max() / shown.abs().max()).item(),
        (bits != wanted).float().mean().item(),
    )


def test_the_public_network_is_near_float64(golden: dict[str, torch.Tensor], golden_network: Network) -> None:
    image = golden["image_u8"].float() / 127.5 - 1
    video = torch.stack((image, image.flip(0), image.flip(2), image.flip(3), image), dim=2)[:1]
    encoder, decoder, bits = distance(golden_network, video, golden["quantized"][:1, :, None])
    assert encoder < 1e-5 and decoder < 1e-5 and bits < 1e-3


def test_width_64_is_near_float64() -> None:
    network = shake(Network(NetworkConfig(bits=16, width=64, blocks=1))).requires_grad_(False)
    torch.manual_seed(0)
    encoder, decoder, bits = distance(network, torch.rand(1, 3, 5, 64, 64) * 2 - 1, torch.randn(1, 16, 2, 4, 4))
    assert encoder < 1e-5 and decoder < 1e-5 and bits < 1e-3
