"""Scores by frame against plain computations."""

from __future__ import annotations

import math

import numpy as np
import torch

from pretrain.evaluation import frame_scores


def noise(seed: int) -> torch.Tensor:
    return torch.randint(0, 256, (2, 4, 16, 18, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(seed))


def test_psnr_and_ssim_are_those_of_each_frame() -> None:
    a, b = noise(0), noise(1)
    found = frame_scores.psnr(a, b)
    assert found.shape == (2, 4)
    error = np.mean((a[1, 2].numpy().astype(float) - b[1, 2].numpy()) ** 2)
    assert math.isclose(float(found[1, 2]), 10 * math.log10(255**2 / error), rel_tol=1e-12)
    b[0, 3] = a[0, 3]
    similar = frame_scores.ssim(a, b)
    assert math.isclose(float(similar[0, 3]), 1.0, rel_tol=1e-12) and float(similar[0, 2]) < 0.2
    assert float(frame_scores.psnr(a, b)[0, 3]) == 100


def test_motion_and_flicker_of_known_videos() -> None:
    ramp = (torch.arange(6) * 7).view(1, 6, 1, 1, 1).expand(1, 6, 4, 4, 3).to(torch.uint8)
    assert torch.allclose(frame_scores.motion(ramp), torch.full((1, 5), 7.0, dtype=torch.float64))
    assert torch.allclose(frame_scores.flicker(ramp), torch.zeros(1, 4, dtype=torch.float64))
    to_and_fro = (100 + 10 * (torch.arange(6) % 2)).view(1, 6, 1, 1, 1).expand(1, 6, 4, 4, 3).to(torch.uint8)
    assert torch.allclose(frame_scores.flicker(to_and_fro), torch.full((1, 4), 10.0, dtype=torch.float64))
