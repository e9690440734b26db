"""The Triton kernels against float64: on a card, or on any CPU with `TRITON_INTERPRET=1` where triton is installed.

Channels that are no power of two, a group of one channel, several tiles of pixels, a mean of 30 and a history are what the cases
are made of. (What the network makes of them: test_on_a_card_the_network_is_near_float64.)
"""

from __future__ import annotations

import copy
import os

import pytest
import torch
import torch.nn.functional as F

from tokenizer.config import NetworkConfig
from tokenizer.network.blocks import ResidualBlock
from tokenizer.network.causal_conv import Stream, name_slots
from tokenizer.network.frame_norm import clips_of, frames_of
from tokenizer.network.network import Network, channels_last

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
pytestmark = [] if INTERPRETED else [pytest.mark.gpu]
LAST = torch.channels_last_3d


@pytest.mark.parametrize("mean", [0.0, 30.0])
@pytest.mark.parametrize(
    ("shape", "groups", "held"),
    [((2, 24, 3, 5, 7), 4, 2), ((1, 32, 2, 64, 67), 32, 0), ((2, 48, 1, 80, 40), 1, 1), ((1, 512, 2, 9, 4), 32, 2)],
)
def test_the_norm_is_near_float64(shape: tuple[int, ...], groups: int, held: int, mean: float) -> None:
    from tokenizer.network import cuda_kernels

    generator = torch.Generator().manual_seed(0)
    x = (torch.randn(shape, generator=generator) + mean).contiguous(memory_format=LAST)
    weight, offset, bias = torch.randn(3, shape[1], generator=generator)
    for added, activate in ((None, True), (bias, True), (bias, False)):
        whole = x.double() if added is None else x.double() + added.double().view(1, -1, 1, 1, 1)
        wanted = F.group_norm(frames_of(whole).contiguous(), groups, weight.double(), offset.double(), 1e-6)
        wanted = clips_of(F.silu(wanted) if activate else wanted, shape[0])
        seen = torch.full((*shape[:2], held + shape[2], *shape[3:]), 7.0, device=DEVICE).contiguous(memory_format=LAST)
        affine = (weight.to(DEVICE), offset.to(DEVICE), 1e-6)
        before = None if added is None else added.to(DEVICE)
        cuda_kernels.group_norm_behind(x.to(DEVICE), seen, groups, affine, before, activate=activate)
        found = seen.cpu()
        assert bool((found[:, :, :held] == 7).all()), "the history is not touched"
        # One rounding of a value near 30 is 1e-6 of a deviation.
        assert (found[:, :, held:].double() - wanted).abs().max() < (2e-5 if mean else 4e-6) * max(1, wanted.abs().max().item())


def test_a_frame_has_the_same_bits_in_any_batch() -> None:
    from tokenizer.network import cuda_kernels

    x = torch.randn(3, 40, 4, 33, 31, device=DEVICE).contiguous(memory_format=LAST)
    affine = (torch.randn(40, device=DEVICE), torch.randn(40, device=DEVICE), 1e-6)
    whole = torch.empty_like(x)
    cuda_kernels.group_norm_behind(x, whole, 8, affine)
    for clip, frame in ((0, 0), (1, 2), (2, 3)):
        single = x[clip : clip + 1, :, frame : frame + 1].contiguous(memory_format=LAST)
        alone = torch.empty_like(single)
        cuda_kernels.group_norm_behind(single, alone, 8, affine)
        assert torch.equal(alone[0, :, 0], whole[clip, :, frame])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bias_and_residual_are_added_in_place(dtype: torch.dtype) -> None:
    from tokenizer.network import cuda_kernels

    h, residual = torch.randn(2, 2, 24, 3, 11, 13, device=DEVICE).to(dtype)
    h, residual = h.contiguous(memory_format=LAST), residual.contiguous(memory_format=LAST)
    bias = torch.randn(24, device=DEVICE).to(dtype)
    wanted = (h.float() + residual.float() + bias.float().view(1, -1, 1, 1, 1)).to(dtype).float()
    assert cuda_kernels.add_residual(h, residual, bias) is h
    # The interpreter cuts a float32 to bfloat16 where a card rounds it.
    assert torch.allclose(h.float(), wanted, rtol=2**-7 if INTERPRETED else 0, atol=0)


@pytest.mark.parametrize("outputs", [8, 12])
def test_a_residual_block_with_late_biases_computes_the_same(outputs: int) -> None:
    torch.manual_seed(0)
    block = ResidualBlock(8, outputs, groups=4, kernel_t=3).requires_grad_(False)
    for weight in block.parameters():
        weight.copy_(torch.randn_like(weight) * (weight[0].numel() ** -0.5 if weight.ndim == 5 else 0.5))
    x = torch.randn(2, 8, 3, 9, 11)
    name_slots(block)
    wanted = copy.deepcopy(block).double()(x.double())
    block, stream = block.to(DEVICE), Stream()
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        whole = block._on_cuda(x.to(DEVICE), None)
        parts = [block._on_cuda(part.to(DEVICE), stream) for part in (x[:, :, :1], x[:, :, 1:])]
    for found in (whole, torch.cat(parts, dim=2)):
        assert (found.cpu().double() - wanted).abs().max() < 1e-5


@pytest.mark.gpu
def test_on_a_card_the_network_is_near_float64() -> None:
    torch.manual_seed(0)
    exact = Network(NetworkConfig(bits=16, width=64)).double().requires_grad_(False)
    for name, weight in exact.named_parameters():
        if weight.ndim == 5:  # live at every temporal slice
            weight.copy_(torch.randn_like(weight) * weight[0].numel() ** -0.5)
        elif name.endswith("bias"):
            weight.copy_(torch.randn_like(weight) * 0.1)
    video = torch.rand(2, 3, 9, 64, 64, dtype=torch.float64) * 2 - 1
    network = Network(exact.config).requires_grad_(False)
    network.load_state_dict(exact.state_dict())
    network.cuda()
    channels_last(network)
    with torch.no_grad(), torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        features = exact.encoder(video)
        frames = exact.decoder(features)
        found = network.encoder(video.float().cuda()).cpu().double()
        shown = network.decoder(features.float().cuda()).cpu().double()
    assert (found - features).abs().max() < 1e-5 * features.abs().max()
    assert (shown - frames).abs().max() < 1e-5 * frames.abs().max()
