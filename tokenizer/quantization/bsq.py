"""Multi-scale binary spherical quantisation of single latent frames: pure functions on tensors, float32 inside.

In:  continuous features f_NdHW of N latent frames (frames x clips), or the bits of all scales.
Out: bits (a list of bool (N,h_k,w_k,d), coarse to fine), quantised features, transformer inputs, packed bytes.
Called by: tokenizer/codec.py, tokenizer/training/train.py, and the transformer's objective and sampler.

Legend: N frames, d bits a position, H x W the latent grid (the last scale), h_k x w_k scale k, K scales.

Source: Infinity's multi-scale BSQ and bitwise self-correction (VideoAR Eq. 2, 3 and section 4.1). At each scale: residual ->
area-resize -> L2-normalise over d -> sign / sqrt(d) -> bilinear up -> add to the sum, subtract from the residual.
Bit 1 stands for +1/sqrt(d); a value of exactly 0 gives bit 0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.quantization.scale_schedule import Scales


def resize_area(x_NdHW: Tensor, scale: tuple[int, int]) -> Tensor:
    """Resize by area, as residuals go down to a scale."""
    return x_NdHW if x_NdHW.shape[2:] == scale else F.interpolate(x_NdHW, size=scale, mode="area")


def resize_linear(x_NdHW: Tensor, scale: tuple[int, int]) -> Tensor:
    """Resize bilinearly, as codes go up to the grid and sums to the next scale."""
    return x_NdHW if x_NdHW.shape[2:] == scale else F.interpolate(x_NdHW, size=scale, mode="bilinear", align_corners=False)


def _bits(z_Ndhw: Tensor) -> Tensor:
    # the L2-normalisation before the sign divides by a positive number, so it changes no bit
    return (z_Ndhw > 0).permute(0, 2, 3, 1).contiguous()


def codes(bits_Nhwd: Tensor) -> Tensor:
    """Bits (N,h,w,d) to codes of unit length, float32 (N,d,h,w): +-1/sqrt(d)."""
    signs = bits_Nhwd.permute(0, 3, 1, 2).to(torch.float32) * 2 - 1
    return signs / math.sqrt(bits_Nhwd.shape[-1])


def quantize(features_NdHW: Tensor, scales: Scales) -> tuple[list[Tensor], Tensor]:
    """Features (N,d,H,W) to bits of every scale and the sum of their up-sampled codes, float32 (N,d,H,W)."""
    _check_grid(features_NdHW, scales)
    with torch.autocast(features_NdHW.device.type, enabled=False):
        residual = features_NdHW.float()
        total = torch.zeros_like(residual)
        bits: list[Tensor] = []
        for scale in scales:
            bits.append(_bits(resize_area(residual, scale)))
            up = resize_linear(codes(bits[-1]), scales[-1])
            total = total + up
            residual = residual - up
    return bits, total


def accumulate(bits: Sequence[Tensor], scales: Scales) -> Tensor:
    """Sum of the up-sampled codes of the given bits, float32 (N,d,H,W). Fewer lists than scales give the partial sum."""
    if not 0 < len(bits) <= len(scales):
        raise ValueError(f"{len(bits)} bit maps for {len(scales)} scales")
    total = resize_linear(codes(bits[0]), scales[-1])
    for item in bits[1:]:
        total = total + resize_linear(codes(item), scales[-1])
    return total


def next_inputs(bits: Sequence[Tensor], scales: Scales, mode: Literal["linear", "area"] = "linear") -> list[Tensor]:
    """Transformer inputs of scales 2..K: the sum so far, resized to the next scale; K-1 tensors float32 (N,d,h_{k+1},w_{k+1})."""
    resize = {"linear": resize_linear, "area": resize_area}[mode]
    inputs: list[Tensor] = []
    total: Tensor | None = None
    for item, following in zip(bits[:-1], scales[1:]):
        up = resize_linear(codes(item), scales[-1])
        total = up if total is None else total + up
        inputs.append(resize(total, following))
    return inputs


def requantize(features_NdHW: Tensor, scales: Scales, flips: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor], Tensor]:
    """Self-correction: quantise while `flips` (K bool maps (N,h_k,w_k,d)) corrupt what each scale leaves behind.

    Returns (labels: bits before the flip, quantised against the corrupted sum; inputs of scales 2..K by linear resize;
    the final corrupted sum, float32 (N,d,H,W)). Infinity Alg. 2.
    """
    _check_grid(features_NdHW, scales)
    if len(flips) != len(scales):
        raise ValueError(f"{len(flips)} flip maps for {len(scales)} scales")
    with torch.autocast(features_NdHW.device.type, enabled=False):
        features = features_NdHW.float()
        total = torch.zeros_like(features)
        labels: list[Tensor] = []
        inputs: list[Tensor] = []
        for k, scale in enumerate(scales):
            label = _bits(resize_area(features - total, scale))
            labels.append(label)
            total = total + resize_linear(codes(label ^ flips[k]), scales[-1])
            if k + 1 < len(scales):
                inputs.append(resize_linear(total, scales[k + 1]))
    return labels, inputs, total


def _check_grid(features_NdHW: Tensor, scales: Scales) -> None:
    if features_NdHW.ndim != 4 or tuple(features_NdHW.shape[2:]) != tuple(scales[-1]):
        raise ValueError(f"features of shape {tuple(features_NdHW.shape)}: the scales end at {scales[-1]}")
