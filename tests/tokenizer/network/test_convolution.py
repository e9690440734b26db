"""Convolutions on a CPU: equal to torch's in value and gradient, never in its loop, chosen by a rule that knows shapes only."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F

from tokenizer.config import LossConfig, NetworkConfig, TokenizerConfig
from tokenizer.network.convolution import convolve, form, onednn_computes
from tokenizer.quantization.scale_schedule import scales
from tokenizer.training.autoencoder import Autoencoder

CPU = torch.device("cpu")
HALF = onednn_computes(CPU, torch.bfloat16)
CASES = [
    # clips, channels, made, (frames, rows, columns), kernel, stride, padding of rows and columns
    (1, 5, 7, (4, 9, 8), (3, 3, 3), (1, 1, 1), 1),
    (2, 5, 7, (4, 9, 8), (3, 3, 3), (1, 1, 1), 1),
    (1, 6, 4, (3, 11, 7), (3, 3, 3), (2, 2, 2), 0),
    (1, 6, 4, (3, 10, 7), (1, 3, 3), (1, 2, 2), 0),
    (1, 6, 4, (1, 8, 8), (1, 3, 3), (1, 1, 1), 1),
    (1, 6, 4, (3, 1, 2), (3, 3, 3), (1, 1, 1), 1),
    (1, 6, 4, (2, 5, 5), (1, 1, 1), (1, 1, 1), 0),
    (1, 16, 4, (3, 40, 40), (3, 3, 3), (1, 1, 1), 1),
]


@pytest.fixture
def threads() -> Iterator[None]:
    """A test that changes the number of threads; it is one again afterwards."""
    yield
    torch.set_num_threads(1)


@pytest.mark.parametrize(("clips", "channels", "made", "sides", "kernel", "stride", "pad"), CASES)
def test_values_and_gradients_are_those_of_float64(
    clips: int,
    channels: int,
    made: int,
    sides: tuple[int, ...],
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    pad: int,
) -> None:
    torch.manual_seed(0)
    given = [torch.randn(clips, channels, *sides), torch.randn(made, channels, *kernel), torch.randn(made)]
    for used in itertools.product((True, False), repeat=3):
        if not any(used):
            continue
        single = [each.clone().requires_grad_(need) for each, need in zip(given, used, strict=True)]
        double = [each.double().requires_grad_(need) for each, need in zip(given, used, strict=True)]
        found = convolve(single[0], single[1], single[2], stride, (0, pad, pad))
        wanted = F.conv3d(double[0], double[1], double[2], stride, (0, pad, pad))
        assert found.shape == wanted.shape
        assert (found - wanted).abs().max() < 2e-6 * wanted.abs().max()
        grad = torch.randn_like(wanted)
        found.backward(grad.float())
        wanted.backward(grad)
        for one, other in zip(single, double, strict=True):
            assert (one.grad is None) == (other.grad is None)
            if one.grad is not None and other.grad is not None:
                assert (one.grad - other.grad).abs().max() < 4e-6 * other.grad.abs().max()


def test_the_form_is_a_rule_on_shapes() -> None:
    assert form(CPU, torch.float32, (1, 1, 1), (1, 1, 1)) == "product"
    assert form(CPU, torch.bfloat16, (1, 3, 3), (1, 2, 2)) == "2d"
    assert form(CPU, torch.float32, (3, 3, 3), (1, 1, 1)) == "3d"
    assert form(CPU, torch.float32, (1, 3, 3), (2, 2, 2)) == "3d"
    assert form(CPU, torch.float64, (3, 3, 3), (1, 1, 1)) == "torch"
    assert form(torch.device("cuda"), torch.float32, (3, 3, 3), (1, 1, 1)) == "torch"


@pytest.mark.parametrize(
    "dtype", ["float32", pytest.param("bfloat16", marks=[] if HALF else pytest.mark.skip("no bfloat16 here"))]
)
@pytest.mark.parametrize("clips", [1, 2])
def test_a_training_step_never_takes_the_slow_loop(clips: int, dtype: str) -> None:
    network = NetworkConfig(bits=8, width=8, patch=2, multipliers=(1, 2, 2), blocks=1, groups=1)
    loss = LossConfig(perceptual=0.0, gan=0.0)
    config = TokenizerConfig.model_validate({"network": network, "loss": loss, "training": {"dtype": dtype}})
    model = Autoencoder(config)
    listed = scales(4, 4)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        recon, middle = model(torch.randn(clips, 3, 5, 32, 32), listed, [True] * len(listed), True)
        (recon.square().mean() + middle.commitment).backward()
    names = {event.key for event in profile.key_averages()}
    assert "aten::mkldnn_convolution" in names, "oneDNN computes it"
    assert any("convolution_backward" in name for name in names)
    assert not [name for name in names if "slow_conv" in name or "thnn" in name]
    assert all(weight.grad is not None for weight in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16] if HALF else [torch.float32])
def test_the_result_depends_on_neither_threads_nor_other_clips(dtype: torch.dtype, threads: None) -> None:
    torch.manual_seed(0)
    for channels, side in ((16, 24), (64, 16), (3, 40)):
        x = torch.randn(3, channels, 5, side, side).to(dtype).contiguous(memory_format=torch.channels_last_3d)
        weight, bias = torch.randn(32, channels, 3, 3, 3).to(dtype), torch.randn(32).to(dtype)
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(convolve(x, weight, bias, (1, 1, 1), (0, 1, 1)))
        assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
        torch.set_num_threads(1)
        assert torch.equal(convolve(x[1:2], weight, bias, (1, 1, 1), (0, 1, 1)), found[0][1:2])


def test_a_type_without_instructions_is_computed_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    x, weight = torch.randn(1, 4, 3, 6, 6).bfloat16(), torch.randn(5, 4, 3, 3, 3).bfloat16()
    found = convolve(x, weight, None, (1, 1, 1), (0, 1, 1))
    assert found.dtype == torch.bfloat16
    wanted = F.conv3d(x.double(), weight.double(), None, 1, (0, 1, 1))
    assert torch.equal(found, wanted.float().bfloat16()) or (found.double() - wanted).abs().max() < 4e-3 * wanted.abs().max()
