"""LPIPS, the perceptual distance, on its published VGG or AlexNet weights, frame by frame.

In:  images in [-1, 1], or clips (B,3,T,H,W); weights that `python -m tokenizer.evaluation.fetch` has put into the cache.
Out: one distance per image (scores), or a scalar with gradients (the training loss).

Source: LPIPS v0.1 (Zhang et al. 2018): scaled input, backbone features at five depths, each normalised over channels, squared
difference, a learned non-negative weight per channel, mean over space, sum over depths.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.evaluation.pretrained import ScoreError, load
from tokenizer.network.frame_norm import frames_of

Net = Literal["none", "lpips-vgg", "lpips-alex"]

_VGG = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
"""Widths of VGG16's convolutions; each group ends at a tapped feature, then comes a 2x2 max pool."""
_ALEX = ((64, 11, 4, 2), (192, 5, 1, 2), (384, 3, 1, 1), (256, 3, 1, 1), (256, 3, 1, 1))
"""Width, kernel, stride and padding of AlexNet's convolutions; every one is tapped."""


class Lpips(nn.Module):
    """LPIPS distance with a frozen backbone; `forward` returns one distance per image."""

    def __init__(self, net: Literal["lpips-vgg", "lpips-alex"], weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        arrays = load(net) if weights is None else weights
        self.net = net
        prefix = "VGG16_0" if net == "lpips-vgg" else "AlexNet_0"
        count = sum(name.startswith(f"{prefix}/") and name.endswith("/kernel") for name in arrays)
        self.kernels = nn.ParameterList(
            nn.Parameter(arrays[f"{prefix}/Conv_{i}/kernel"].permute(3, 2, 0, 1).contiguous(memory_format=torch.channels_last))
            for i in range(count)
        )
        self.biases = nn.ParameterList(nn.Parameter(arrays[f"{prefix}/Conv_{i}/bias"].clone()) for i in range(count))
        self.heads = nn.ParameterList(nn.Parameter(arrays[f"NetLinLayer_{i}/Conv_0/kernel"].reshape(-1)) for i in range(5))
        self.register_buffer("shift", torch.tensor((-0.030, -0.088, -0.188)).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor((0.458, 0.448, 0.450)).view(1, 3, 1, 1))
        self.requires_grad_(False)

    def features(self, x_N3HW: Tensor) -> list[Tensor]:
        """Return the five tapped features of images in [-1, 1]."""
        shift, scale = self.get_buffer("shift"), self.get_buffer("scale")
        x = (x_N3HW - shift) / scale
        taps: list[Tensor] = []
        number = 0
        if self.net == "lpips-vgg":
            for group in _VGG:
                if taps:
                    x = F.max_pool2d(x, 2)
                for _ in group:
                    x = F.relu(F.conv2d(x, self.kernels[number], self.biases[number], padding=1))
                    number += 1
                taps.append(x)
            return taps
        for number, (_, _, stride, padding) in enumerate(_ALEX):
            if number in (1, 2):
                x = F.max_pool2d(x, 3, stride=2)
            x = F.relu(F.conv2d(x, self.kernels[number], self.biases[number], stride=stride, padding=padding))
            taps.append(x)
        return taps

    def forward(self, a_N3HW: Tensor, b_N3HW: Tensor) -> Tensor:
        """Return the distances (N,) of image pairs in [-1, 1]. Raises ScoreError for images too small for the backbone."""
        if min(a_N3HW.shape[2:]) < 32:
            raise ScoreError(f"LPIPS needs images of at least 32x32 pixels, not {a_N3HW.shape[2]}x{a_N3HW.shape[3]}")
        distance = a_N3HW.new_zeros(a_N3HW.shape[0], dtype=torch.float32)
        for a, b, head in zip(self.features(a_N3HW), self.features(b_N3HW), self.heads):
            square = (_unit(a.float()) - _unit(b.float())).square()
            distance = distance + torch.einsum("nchw,c->nhw", square, head).mean((1, 2))
        return distance


def _unit(x_NCHW: Tensor) -> Tensor:
    return x_NCHW / (x_NCHW.square().sum(1, keepdim=True).sqrt() + 1e-10)


class PerceptualLoss(nn.Module):
    """Mean LPIPS over the frames of two clips."""

    def __init__(self, lpips: Lpips) -> None:
        super().__init__()
        self.lpips = lpips

    def forward(self, recon_BCTHW: Tensor, real_BCTHW: Tensor) -> Tensor:
        """Return a scalar; gradients flow to both clips."""
        distance: Tensor = self.lpips(frames_of(recon_BCTHW), frames_of(real_BCTHW))
        return distance.mean()


def perceptual(net: Net, device: torch.device | str) -> PerceptualLoss | None:
    """Return the configured loss on `device`, None for `none`. Raises WeightsError when the weights have not been fetched."""
    if net == "none":
        return None
    return PerceptualLoss(Lpips(net)).to(device)
