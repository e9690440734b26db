"""The autoencoder as training runs it: encoder, quantizer with a straight-through gradient, decoder.

In:  clips x_BCTHW in [-1, 1], the scale list, which scales are kept, at which scale each clip's quantizer stops.
Out: reconstructions, and the `Bottleneck`: quantized features, loss terms, statistics of the bits.

Legend: N = B * T' latent frames, d bits per position, h x w one scale, K scales.

Source: VideoAR Eq. 4, Infinity's BSQ. The entropy penalty uses soft bits p = sigmoid(4 z inverse_temperature / sqrt(d)) of the
normalised residual z: the mean entropy of a bit minus the entropy of the mean bit, divided by inverse_temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.config import TokenizerConfig
from tokenizer.network.network import Network
from tokenizer.quantization.bsq import resize_area, resize_linear
from tokenizer.quantization.scale_schedule import Scales


class Autoencoder(nn.Module):
    """The network with the quantizer between its halves."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.network = Network(config.network)
        self.loss, self.dtype = config.loss, torch.bfloat16 if config.training.dtype == "bfloat16" else torch.float32

    def forward(
        self, x_BCTHW: Tensor, scales: Scales, kept: list[bool], share: float = 1.0, depth_B: Tensor | None = None
    ) -> tuple[Tensor, Bottleneck]:
        """Return the reconstruction, float32 (B,3,T,H,W), and the bottleneck.

        share, and depth_B for each clip: as in `straight_through`.
        """
        with torch.autocast(x_BCTHW.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.network.encoder(x_BCTHW)
        features_NdHW = features.float().transpose(1, 2).flatten(0, 1)
        depth_N = None if depth_B is None else depth_B.repeat_interleave(len(features_NdHW) // len(x_BCTHW))
        middle = straight_through(features_NdHW, scales, kept, self.loss.inverse_temperature, share, depth_N)
        joined = middle.quantized.unflatten(0, (x_BCTHW.shape[0], -1)).transpose(1, 2)
        with torch.autocast(x_BCTHW.device.type, self.dtype, enabled=self.dtype != torch.float32):
            recon = self.network.decoder(joined.contiguous(memory_format=torch.channels_last_3d))
        return recon.float(), middle


@dataclass
class Bottleneck:
    """What the quantizer gives to training."""

    quantized: Tensor
    """Features for the decoder, float32 (N,d,H,W); their gradient reaches the encoder unchanged."""
    commitment: Tensor
    entropy: Tensor
    usage_Kd: Tensor
    """Share of ones of each bit at each scale, NaN at a dropped scale; of the frames that use it."""


def straight_through(
    features_NdHW: Tensor,
    scales: Scales,
    kept: Sequence[bool],
    inverse_temperature: float,
    share: float = 1.0,
    depth_N: Tensor | None = None,
) -> Bottleneck:
    """Quantize with a straight-through gradient. `kept[k]` False drops scale k.

    depth_N: how many scales each frame's quantizer uses, the coarsest ones (int); None = all. What a frame loses by it is lost to its
    unquantized features as well: those are the features resized to each of its scales and back, as its codes are.

    share: how much of the quantizer's error is added to the features: 1 returns the quantized ones, 0 the features themselves. Between
    them a difference that is too small to turn a bit is passed on, smaller by this share, so that its gradient can make it larger.

    The gradient of the sum over scales goes to the features unchanged (through that resizing, where a frame's last scale is left out).
    The commitment loss pulls the features to that sum and so fixes their magnitude, since a sum of unit codes cannot follow an
    arbitrary one.
    """
    d = features_NdHW.shape[1]
    features = features_NdHW.float()
    total = torch.zeros_like(features)
    passable = features if depth_N is None else _pyramid(features, scales, kept, depth_N)
    entropy = features.new_zeros(())
    usage = features.new_full((len(scales), d), math.nan)
    for k, scale in enumerate(scales):
        if not kept[k]:
            continue
        z_Ndhw = F.normalize(resize_area(features - total, scale), dim=1)
        code = torch.where(z_Ndhw > 0, 1.0, -1.0) / math.sqrt(d)
        entropy = entropy + _entropy(z_Ndhw, inverse_temperature)
        ones_Nd = (z_Ndhw.detach() > 0).float().mean((2, 3))
        used = None if depth_N is None else (depth_N > k).float()
        usage[k] = ones_Nd.mean(0) if used is None else used @ ones_Nd / used.sum()
        total = total + _masked(resize_linear(code, scales[-1]), k, depth_N)
    # Squared distance of whole feature vectors: codes have unit length whatever d is.
    commitment = F.mse_loss(passable, total) * d
    passed = passable + share * (total - passable).detach()
    return Bottleneck(passed, commitment, entropy / max(1, sum(kept)), usage)


def _pyramid(features_NdHW: Tensor, scales: Scales, kept: Sequence[bool], depth_N: Tensor) -> Tensor:
    """Return what each frame's scales hold of its features, without quantizing: all of them where the last scale is used."""
    held = torch.zeros_like(features_NdHW)
    for k, scale in enumerate(scales):
        if kept[k]:
            held = held + _masked(resize_linear(resize_area(features_NdHW - held, scale), scales[-1]), k, depth_N)
    return held


def _masked(x_NdHW: Tensor, scale: int, depth_N: Tensor | None) -> Tensor:
    """Return x for the frames that use this scale, 0 for the others."""
    return x_NdHW if depth_N is None else x_NdHW * (depth_N > scale).to(x_NdHW.dtype)[:, None, None, None]


def _entropy(z_Ndhw: Tensor, inverse_temperature: float) -> Tensor:
    """Entropy penalty of one scale: mean entropy of the soft bits minus entropy of their mean."""
    logits = z_Ndhw * (4 * inverse_temperature / math.sqrt(z_Ndhw.shape[1]))
    share = torch.sigmoid(logits)
    each = F.softplus(-logits) + logits * (1 - share)
    mean = share.mean((0, 2, 3)).clamp(1e-6, 1 - 1e-6)
    whole = -(mean * mean.log() + (1 - mean) * (1 - mean).log())
    return (each.mean((0, 2, 3)).sum() - whole.sum()) / inverse_temperature
