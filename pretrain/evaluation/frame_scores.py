"""Scores of frames against frames, and of how a video moves; all frame by frame.

In:  clips uint8 (B,T,H,W,3).
Out: float64 (B,T), one score per frame, or per pair or triple of neighbours.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokenizer.evaluation import metrics
from tokenizer.evaluation.lpips import Lpips


def psnr(a_BTHWC: Tensor, b_BTHWC: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each frame in dB, at most 100."""
    return _by_frame(metrics.psnr, a_BTHWC, b_BTHWC)


def ssim(a_BTHWC: Tensor, b_BTHWC: Tensor) -> Tensor:
    """Return the structural similarity of each frame. Raises ScoreError for frames under 11 pixels."""
    return _by_frame(metrics.ssim, a_BTHWC, b_BTHWC)


def lpips(net: Lpips, a_BTHWC: Tensor, b_BTHWC: Tensor) -> Tensor:
    """Return the LPIPS distance of each frame. Raises ScoreError for frames under 32 pixels."""
    return _by_frame(lambda a, b: metrics.lpips(net, a, b), a_BTHWC, b_BTHWC)


def motion(x_BTHWC: Tensor) -> Tensor:
    """Return how much each frame differs from the one before, float64 (B, T-1): the mean absolute difference in levels of 255.

    VBench's `temporal_flickering` of a video is (255 - mean) / 255 of these.
    """
    x = x_BTHWC.double()
    return (x[:, 1:] - x[:, :-1]).abs().flatten(2).mean(2)


def flicker(x_BTHWC: Tensor) -> Tensor:
    """Return how far each frame lies from the mean of its neighbours, float64 (B, T-2), in levels of 255.

    Steady change gives 0, a pixel that goes to and fro by a gives a.
    """
    x = x_BTHWC.double()
    return (x[:, 1:-1] - (x[:, 2:] + x[:, :-2]) / 2).abs().flatten(2).mean(2)


def _by_frame(score: Callable[[Tensor, Tensor], Tensor], a_BTHWC: Tensor, b_BTHWC: Tensor) -> Tensor:
    assert a_BTHWC.shape == b_BTHWC.shape
    a, b = (x.flatten(0, 1).unsqueeze(1) for x in (a_BTHWC, b_BTHWC))  # each frame is a clip of its own
    return torch.as_tensor(score(a, b)).double().view(a_BTHWC.shape[:2])
