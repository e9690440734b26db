"""Cross-frame error correction: ratios, flips, re-quantized labels, feeds."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

from pretrain.objective import teacher_forcing
from pretrain.objective.config import ObjectiveConfig
from tokenizer.quantization.bsq import accumulate, codes, quantize, resize_area, resize_linear
from tokenizer.quantization.scale_schedule import scales

SCALES = scales(8, 8)
SEEDS = torch.arange(50)


@pytest.fixture(scope="module")
def features() -> Tensor:
    """Smooth features of 6 frames (3 clips of 2)."""
    coarse = torch.randn(6, 16, 3, 3, generator=torch.Generator().manual_seed(0))
    return torch.nn.functional.interpolate(coarse, size=(8, 8), mode="bicubic") * 0.3


def _flipped(share: float, seed: int = 1, last: bool = True) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    maps = [torch.rand(6, h, w, 16, generator=generator) < share for h, w in SCALES]
    return maps if last else [*maps[:-1], torch.zeros_like(maps[-1])]


def test_golden_self_correction(shared: Path) -> None:
    golden = safetensors.torch.load_file(shared / "golden" / "infinity2d_d16.vectors.safetensors")
    bits = [
        golden[f"bits_{k}"].squeeze(1).bool() if golden[f"bits_{k}"].ndim == 5 else golden[f"bits_{k}"].bool() for k in range(6)
    ]
    flipped = [golden[f"flip_{k}"].bool() for k in range(5)]
    flipped.append(torch.zeros_like(bits[5]))
    labels, inputs, _ = teacher_forcing.corrected_labels(bits, SCALES, flipped, golden["feature"])
    for k, label in enumerate(labels):
        assert torch.equal(label.flatten(1, 2), golden[f"bsc_label_{k}"].bool()), k
    found = torch.cat([item.flatten(2).transpose(1, 2) for item in inputs], dim=1)
    assert torch.allclose(found, golden["bsc_input"], atol=1e-5)


def test_golden_inputs_by_area(shared: Path) -> None:
    golden = safetensors.torch.load_file(shared / "golden" / "infinity2d_d16.vectors.safetensors")
    bits, _ = quantize(golden["feature"], SCALES)
    inputs = teacher_forcing.corrected_labels(bits, SCALES, mode="area")[1]
    assert len(inputs) == 5
    for k, item in enumerate(inputs):
        assert torch.allclose(item, golden[f"next_input_area_{k}"], atol=1e-6), k


def _self_correction(features: Tensor, flipped: list[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Infinity's Alg. 2 to the letter: quantize against the corrupted sum, flip, add the flipped codes."""
    total = torch.zeros_like(features)
    labels, inputs = [], []
    for k, scale in enumerate(SCALES):
        labels.append((resize_area(features - total, scale) > 0).permute(0, 2, 3, 1))
        total = total + resize_linear(codes(labels[-1] ^ flipped[k]), SCALES[-1])
        inputs += [resize_linear(total, following) for following in SCALES[k + 1 : k + 2]]
    return labels, inputs, total


@pytest.mark.parametrize("share", [0.0, 0.02, 0.3])
def test_with_features_it_equals_infinitys_self_correction(features: Tensor, share: float) -> None:
    bits, _ = quantize(features, SCALES)
    flipped = _flipped(share)
    expected_labels, expected_inputs, expected_final = _self_correction(features, flipped)
    labels, inputs, final = teacher_forcing.corrected_labels(bits, SCALES, flipped, features)
    wrong = sum(int((a != b).sum()) for a, b in zip(labels, expected_labels, strict=True))
    assert wrong == 0
    for ours, theirs in zip([*inputs, final], [*expected_inputs, expected_final], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)


@pytest.mark.parametrize("with_features", [False, True])
def test_without_flips_the_stored_bits_stay(features: Tensor, with_features: bool) -> None:
    bits, quantized = quantize(features, SCALES)
    rounded = features.bfloat16() if with_features else None
    for flipped in (None, _flipped(0.0)):
        labels, inputs, final = teacher_forcing.corrected_labels(bits, SCALES, flipped, rounded)
        assert all(torch.equal(a, b) for a, b in zip(labels, bits, strict=True))
        assert torch.allclose(final, quantized, atol=1e-6)
        for ours, theirs in zip(inputs, _self_correction(features, _flipped(0.0))[1], strict=True):
            assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_label_differs_only_behind_a_corrupted_channel(features: Tensor) -> None:
    bits, _ = quantize(features, SCALES)
    flipped = _flipped(0.0)
    flipped[1][0, 0, 0, 5] = True
    labels, _, final = teacher_forcing.corrected_labels(bits, SCALES, flipped)
    for k, (label, bit) in enumerate(zip(labels, bits, strict=True)):
        changed = label != bit
        assert not changed[1:].any() and not changed[..., :5].any() and not changed[..., 6:].any()
        assert k > 1 or not changed.any()
    assert any((a != b).any() for a, b in zip(labels, bits, strict=True))
    assert not torch.allclose(final[0, 5], accumulate(bits, SCALES)[0, 5])


def test_requantized_labels_mend_the_history(features: Tensor) -> None:
    """The corrected sum is nearer to the features than the same flips without correction."""
    bits, quantized = quantize(features, SCALES)
    flipped = _flipped(0.2, last=False)
    with_mending = teacher_forcing.corrected_labels(bits, SCALES, flipped, features)[2]
    labels, _, without = teacher_forcing.corrected_labels(bits, SCALES, flipped, features, requantize=False)
    assert all(torch.equal(a, b) for a, b in zip(labels, bits, strict=True))
    clean, mended, spoiled = (float((x - features).square().mean()) for x in (quantized, with_mending, without))
    assert clean < mended < 0.5 * spoiled


def test_without_features_the_labels_come_near_those_from_features(features: Tensor) -> None:
    """The stand-in mends about as the features do: far better than leaving the stored bits as labels."""
    bits, _ = quantize(features, SCALES)
    flipped = _flipped(0.2, last=False)
    exact = teacher_forcing.corrected_labels(bits, SCALES, flipped, features)[0]
    proxy = teacher_forcing.corrected_labels(bits, SCALES, flipped)[0]

    def agreement(labels: list[Tensor]) -> float:
        return sum(int((a == b).sum()) for a, b in zip(exact, labels, strict=True)) / sum(a.numel() for a in exact)

    assert agreement(proxy) > 0.7
    assert agreement(proxy) > agreement(bits) + 0.1


def test_ratios_follow_eq_8() -> None:
    config = ObjectiveConfig(flip_min=0.05, flip_max=0.25, flip_delta=0.02)
    found = teacher_forcing.flip_ratios(config, torch.arange(4000), 4, 6)
    for frame in range(4):
        low, high = 0.05 + 0.02 * frame, 0.25 + 0.02 * frame
        inner = found[:, frame, 1:]
        assert low <= float(inner.min()) < low + 0.002 and high - 0.002 < float(inner.max()) <= high
        assert abs(float(inner.mean()) - (low + high) / 2) < 0.005
        if frame:
            last, first = found[:, frame - 1, -1], found[:, frame, 0]
            assert bool((first >= last).all()) and float(first.max()) <= high + 1e-6
            # Uniform between the inherited end and the upper end: the mean lies halfway.
            assert abs(float(first.mean() - (last + high).mean() / 2)) < 0.005


def test_ablations_of_the_ratios() -> None:
    plain = teacher_forcing.flip_ratios(ObjectiveConfig(flip_inherit=False, flip_time_dependent=False), SEEDS, 20, 6)
    assert float(plain.max()) <= 0.25
    assert bool((plain[:, 1:, 0] < plain[:, :-1, -1]).any())
    grown = teacher_forcing.flip_ratios(ObjectiveConfig(flip_inherit=False), SEEDS, 200, 2)
    assert float(grown.max()) <= 1.0 and float(grown[:, -1].min()) >= 1.0
    off = ObjectiveConfig(flip_max=0, flip_delta=0)
    assert not teacher_forcing.corrupts(off) and teacher_forcing.corrupts(ObjectiveConfig())


def test_bits_turn_with_their_ratio() -> None:
    ratios = torch.rand(50, 2, 6, generator=torch.Generator().manual_seed(0)) * 0.3
    maps = teacher_forcing.flips(SEEDS, ratios, SCALES, 16)
    assert [tuple(m.shape) for m in maps] == [(100, h, w, 16) for h, w in SCALES]
    share = maps[-1].float().mean((1, 2, 3)).view(50, 2)
    assert float((share - ratios[:, :, -1]).abs().max()) < 5 * (0.25 / 1024) ** 0.5
    assert not teacher_forcing.flips(SEEDS, torch.zeros_like(ratios), SCALES, 16)[3].any()


def test_feeds_are_in_the_order_of_the_tokens(features: Tensor) -> None:
    bits, _ = quantize(features, SCALES)
    _, inputs, final = teacher_forcing.corrected_labels(bits, SCALES)
    fed = teacher_forcing.token_inputs(inputs, final, 2, SCALES)
    assert fed.shape == (3, 260, 16)
    assert not fed[:, 0].any()
    # clip 1, frame 1 is frame 3 of all; its first scale is fed the sum of frame 2.
    assert torch.allclose(fed[1, 130], torch.nn.functional.interpolate(final[2:3], size=(1, 1), mode="bilinear").flatten())
    begin = 130 + 1 + 4 + 9
    assert torch.equal(fed[1, begin : begin + 16], inputs[2][3].flatten(1).t())
    area = teacher_forcing.token_inputs(inputs, final, 2, SCALES, "area")
    assert torch.allclose(area[1, 130], final[2].mean((1, 2)), atol=1e-6)


@pytest.mark.parametrize("mode", ["linear", "area"])
def test_every_scale_may_be_fed_the_previous_frame(features: Tensor, mode: str) -> None:
    bits, _ = quantize(features, SCALES)
    _, inputs, final = teacher_forcing.corrected_labels(bits, SCALES, mode=mode)
    plain = teacher_forcing.token_inputs(inputs, final, 2, SCALES, mode)
    fed = teacher_forcing.token_inputs(inputs, final, 2, SCALES, mode, previous=True)
    assert fed.shape == (3, 260, 32) and torch.equal(fed[..., :16], plain)
    own, before = fed[..., :16], fed[..., 16:]
    assert not before[:, :130].any(), "nothing precedes frame 0"
    assert torch.equal(before[:, 130], own[:, 130]), "the first scale is fed it in any case"
    # The finest scale of clip 1, frame 1 sees frame 2 of all as it was decoded, bit by bit.
    rows, columns = SCALES[-1]
    assert torch.equal(before[1, -rows * columns :], final[2].flatten(1).t())
