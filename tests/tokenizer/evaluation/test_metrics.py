"""Scores by their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from tokenizer.evaluation import metrics
from tokenizer.quantization.bit_packing import pack
from tokenizer.quantization.scale_schedule import scales


def noise(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 3, 16, 16, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_psnr_of_a_known_error() -> None:
    a = torch.full((2, 1, 4, 4, 3), 100, dtype=torch.uint8)
    b = a.clone()
    b[1] = 110
    found = metrics.psnr(a, b)
    assert found[0] == 100
    assert found[1].item() == pytest.approx(10 * math.log10(255**2 / 100))


def test_ssim_is_one_for_equals_and_falls_with_noise() -> None:
    a = (torch.arange(16).view(1, 1, 16, 1, 1) * 10).expand(1, 3, 16, 16, 3).to(torch.uint8)
    little = (a.int() + torch.randint(-3, 4, a.shape)).clamp(0, 255).to(torch.uint8)
    much = (a.int() + torch.randint(-40, 41, a.shape)).clamp(0, 255).to(torch.uint8)
    assert metrics.ssim(a, a).item() == pytest.approx(1)
    assert metrics.ssim(a, little).item() > metrics.ssim(a, much).item()
    with pytest.raises(ValueError, match="11x11"):
        metrics.ssim(a[:, :, :8], a[:, :, :8])


def test_ssim_of_constant_pictures_is_the_luminance_term() -> None:
    a, b = (torch.full((1, 1, 16, 16, 3), value, dtype=torch.uint8) for value in (100, 120))
    c1 = (0.01 * 255) ** 2
    assert metrics.ssim(a, b).item() == pytest.approx((2 * 100 * 120 + c1) / (100**2 + 120**2 + c1), rel=1e-6)


def test_bit_statistics_count_use_and_death() -> None:
    listed = scales(2, 2)
    bits = [torch.rand(500, r, c, 8) > 0.5 for r, c in listed]
    bits[0][..., 0] = True
    figures = metrics.bit_statistics(pack(bits), listed, 8)
    assert figures["1x1"]["dead"] == 1 / 8
    assert 0.8 < figures["1x1"]["entropy"] < 0.9
    assert figures["2x2"]["dead"] == 0
    assert figures["2x2"]["entropy"] > 0.99


def test_bits_per_pixel() -> None:
    assert metrics.bits_per_pixel(260, 3, 9, 64, 64) == pytest.approx(260 * 8 * 3 / (9 * 64 * 64))


def test_frechet_distance_is_that_of_gaussians() -> None:
    draw = np.random.default_rng(0)
    a, b = draw.normal(size=(4000, 3)), draw.normal(size=(4000, 3)) * [1, 2, 3] + [1, 0, 0]
    assert metrics.frechet(a, b) == pytest.approx(1 + 0 + 1 + 4, rel=0.1)
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-6)
    s1, s2 = np.cov(a.T), np.cov(b.T)
    values = np.linalg.eigvals(s1 @ s2).real
    exact = np.sum((a.mean(0) - b.mean(0)) ** 2) + np.trace(s1 + s2) - 2 * np.sqrt(values).sum()
    assert metrics.frechet(a, b) == pytest.approx(exact, rel=1e-9)


def test_frechet_distance_of_few_rows_in_many_columns() -> None:
    draw = np.random.default_rng(0)
    a = draw.normal(size=(10, 400))
    assert metrics.frechet(a, a) == pytest.approx(0, abs=1e-6)
    assert metrics.frechet(a, a + 1) == pytest.approx(400, rel=1e-6)
    with pytest.raises(ValueError, match="at least 2"):
        metrics.frechet(a[:1], a)
