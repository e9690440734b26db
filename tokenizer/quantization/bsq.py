"""Multi-scale binary spherical quantization (BSQ) of single latent frames: pure functions on tensors, in float32.

In:  continuous features f_NdHW of N latent frames, or their bits.
Out: bits, a list of bool (N,h_k,w_k,d) from coarse to fine, and the quantized features that they stand for.

Legend: N frames (of any number of clips), d bits per position, H x W the latent grid (the last scale), h_k x w_k scale k.

Each scale codes what the scales before it left over:

    residual ─▶ area-resize to scale k ─▶ L2-normalise over d ─▶ sign / sqrt(d) = code ─▶ bilinear resize to H x W
       ▲                                                                                            │
       └────────────────────────────── subtract, and add to the sum ◀───────────────────────────────┘

Bit 1 stands for +1/sqrt(d), bit 0 for -1/sqrt(d); a value of exactly 0 gives bit 0. Source: Infinity's BSQ (VideoAR Eq. 2 and 3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.quantization.scale_schedule import ScaleError, Scales


def quantize(features_NdHW: Tensor, scales: Scales) -> tuple[list[Tensor], Tensor]:
    """Return the bits of every scale, and the sum of their up-sampled codes, float32 (N,d,H,W). Raises ScaleError."""
    if features_NdHW.ndim != 4 or tuple(features_NdHW.shape[2:]) != tuple(scales[-1]):
        raise ScaleError(f"features of shape {tuple(features_NdHW.shape)}: the last scale is {scales[-1]}")
    with torch.autocast(features_NdHW.device.type, enabled=False):
        residual = features_NdHW.float()
        total = torch.zeros_like(residual)
        bits: list[Tensor] = []
        for scale in scales:
            # Normalising would divide by a positive number before the sign is taken, so it changes no bit and is left out.
            bits.append((resize_area(residual, scale) > 0).permute(0, 2, 3, 1).contiguous())
            up = resize_linear(codes(bits[-1]), scales[-1])
            total = total + up
            residual = residual - up
    return bits, total


def accumulate(bits: Sequence[Tensor], scales: Scales) -> Tensor:
    """Return the sum of the up-sampled codes, float32 (N,d,H,W), of all scales or of the first ones. Raises ScaleError."""
    if not 0 < len(bits) <= len(scales):
        raise ScaleError(f"{len(bits)} bit maps for {len(scales)} scales")
    total = resize_linear(codes(bits[0]), scales[-1])
    for item in bits[1:]:
        total = total + resize_linear(codes(item), scales[-1])
    return total


def codes(bits_Nhwd: Tensor) -> Tensor:
    """Bits (N,h,w,d) to codes of unit length, float32 (N,d,h,w) of +-1/sqrt(d)."""
    signs = bits_Nhwd.permute(0, 3, 1, 2).to(torch.float32) * 2 - 1
    return signs / math.sqrt(bits_Nhwd.shape[-1])


def resize_area(x_NdHW: Tensor, scale: tuple[int, int]) -> Tensor:
    """Resize by area averaging: residuals down to a scale."""
    return x_NdHW if x_NdHW.shape[2:] == scale else F.interpolate(x_NdHW, size=scale, mode="area")


def resize_linear(x_NdHW: Tensor, scale: tuple[int, int]) -> Tensor:
    """Resize bilinearly, without antialiasing: codes up to the latent grid."""
    return x_NdHW if x_NdHW.shape[2:] == scale else F.interpolate(x_NdHW, size=scale, mode="bilinear", align_corners=False)
