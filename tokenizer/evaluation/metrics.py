"""Scores of reconstructions: PSNR, SSIM, LPIPS, FVD, and how well the bits are used.

In:  original and reconstructed clips uint8 (B,T,H,W,3); packed bits.
Out: tensors with one score per clip, or plain numbers.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from tokenizer.evaluation.i3d import I3d
from tokenizer.evaluation.lpips import Lpips
from tokenizer.evaluation.pretrained import ScoreError
from tokenizer.quantization.bit_packing import unpack
from tokenizer.quantization.scale_schedule import Scales


def psnr(a_BTHWC: Tensor, b_BTHWC: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each whole clip in dB, float64 (B,), at most 100."""
    error = (a_BTHWC.double() - b_BTHWC.double()).square().flatten(1).mean(1)
    return (10 * torch.log10(255**2 / error.clamp(min=255**2 * 1e-10))).clamp(max=100.0)


def ssim(a_BTHWC: Tensor, b_BTHWC: Tensor) -> Tensor:
    """Return the structural similarity of each clip, float64 (B,): the mean over channels, valid positions and frames.

    Source: Wang et al. 2004 (Gaussian window 11, sigma 1.5; K1 0.01, K2 0.03, range 255). Raises ScoreError for frames under
    11 pixels.
    """
    if min(a_BTHWC.shape[2:4]) < 11:
        raise ScoreError(f"SSIM needs frames of at least 11x11 pixels, not {a_BTHWC.shape[2]}x{a_BTHWC.shape[3]}")
    place = torch.arange(11, dtype=torch.float64) - 5
    line = torch.exp(-(place**2) / (2 * 1.5**2))
    line = line / line.sum()

    def blur(x_NHW: Tensor) -> Tensor:
        x = F.conv2d(x_NHW[:, None], line.view(1, 1, 11, 1))
        return F.conv2d(x, line.view(1, 1, 1, 11))[:, 0]

    scores = []
    for a_THWC, b_THWC in zip(a_BTHWC.cpu(), b_BTHWC.cpu()):
        a, b = (x.permute(0, 3, 1, 2).flatten(0, 1).double() for x in (a_THWC, b_THWC))
        mean_a, mean_b = blur(a), blur(b)
        var_a, var_b = blur(a * a) - mean_a**2, blur(b * b) - mean_b**2
        both = blur(a * b) - mean_a * mean_b
        c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
        each = ((2 * mean_a * mean_b + c1) * (2 * both + c2)) / ((mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2))
        scores.append(each.mean())
    return torch.stack(scores)


@torch.no_grad()
def lpips(net: Lpips, a_BTHWC: Tensor, b_BTHWC: Tensor) -> Tensor:
    """Return the mean LPIPS over the frames of each clip, float32 (B,). Raises ScoreError for frames under 32x32 pixels."""
    found = []
    device = net.kernels[0].device
    for a_THWC, b_THWC in zip(a_BTHWC, b_BTHWC):
        a, b = (x.to(device).permute(0, 3, 1, 2).float() / 127.5 - 1 for x in (a_THWC, b_THWC))
        found.append(net(a, b).mean().cpu())
    return torch.stack(found)


def rfvd(net: I3d, a_BTHWC: Tensor, b_BTHWC: Tensor) -> float:
    """Return the Frechet video distance between originals and their reconstructions."""
    return frechet(net.features(a_BTHWC).double().numpy(), net.features(b_BTHWC).double().numpy())


def frechet(a_NF: NDArray[np.float64], b_NF: NDArray[np.float64]) -> float:
    """Return the Frechet distance of two feature sets as Gaussians: |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)).

    With n rows a covariance has rank n - 1, so the distance of small sets is biased upwards. Raises ScoreError for fewer than
    2 rows.
    """
    if min(len(a_NF), len(b_NF)) < 2:
        raise ScoreError("a Frechet distance needs at least 2 clips on each side")
    a, b = a_NF.astype(np.float64), b_NF.astype(np.float64)
    difference = a.mean(0) - b.mean(0)
    # The trace of (S1 S2)^(1/2) is the sum of the singular values of X Y^T, where X and Y are the centred, scaled sets: no F x F
    # root is needed.
    x, y = (m - m.mean(0) for m in (a, b))
    x, y = x / np.sqrt(len(x) - 1), y / np.sqrt(len(y) - 1)
    # A set with more rows than columns is replaced by its triangular factor, which leaves that sum unchanged.
    left, right = (_triangular(m) if m.shape[0] > m.shape[1] else m for m in (x, y))
    cross = np.linalg.svd(left @ right.T, compute_uv=False).sum()
    return float(difference @ difference + (x**2).sum() + (y**2).sum() - 2 * cross)


def _triangular(m_NF: NDArray[np.float64]) -> NDArray[np.float64]:
    factor: NDArray[np.float64] = np.asarray(np.linalg.qr(m_NF, mode="r"))
    return factor


def bit_statistics(packed_NB: Tensor, scales: Scales, d: int) -> dict[str, dict[str, float]]:
    """Return how the bits of each scale are used over N frames, by scale such as `8x8`.

    `entropy`: of the mean bit, in bits; 1 = both values equally often. `dead`: share of the bits that never change.
    """
    statistics: dict[str, dict[str, float]] = {}
    for (rows, columns), bits in zip(scales, unpack(packed_NB, scales, d)):
        share = bits.flatten(0, 2).double().mean(0)
        safe = share.clamp(1e-12, 1 - 1e-12)
        entropy = -(safe * safe.log2() + (1 - safe) * (1 - safe).log2())
        dead = ((share == 0) | (share == 1)).double().mean()
        statistics[f"{rows}x{columns}"] = {"entropy": float(entropy.mean()), "dead": float(dead)}
    return statistics


def bits_per_pixel(frame_bytes: int, latents: int, frames: int, height: int, width: int) -> float:
    """Return the stored bits per pixel of a clip."""
    return frame_bytes * 8 * latents / (frames * height * width)
