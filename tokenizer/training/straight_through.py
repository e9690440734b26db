"""The quantiser as training sees it: straight-through gradients, commitment, entropy penalty, scale dropout, bit usage.

In:  continuous features f_NdHW, the scale list, which scales are kept.
Out: `Bottleneck`: quantised features that pass gradients to f, loss terms, and statistics of the bits.
Called by: tokenizer/training/train.py (through tokenizer/training/losses.py).

Source: VideoAR Eq. 4, Infinity's BSQ. Soft bits for the entropy: p = sigmoid(4 z inverse_temperature / sqrt(d)) of the
normalised residual z; the penalty is the mean entropy of a bit less the entropy of the mean bit, over inverse_temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokenizer.quantization.bsq import resize_area, resize_linear
from tokenizer.quantization.scale_schedule import Scales


@dataclass
class Bottleneck:
    """What the quantiser gives to training. `usage_Kd` is the share of ones of each bit at each scale (NaN where dropped)."""

    quantized: Tensor
    commitment: Tensor
    entropy: Tensor
    usage_Kd: Tensor


def bottleneck(
    features_NdHW: Tensor, scales: Scales, keep: Sequence[bool], inverse_temperature: float, quantized: bool = True
) -> Bottleneck:
    """Quantise with a straight-through gradient. `keep[k]` false leaves scale k out; `quantized` false passes the features on.

    The whole sum passes its gradient straight to the features; the commitment pulls the features to the sum, which fixes
    their magnitude, since a sum of unit codes cannot follow an arbitrary one.
    """
    d = features_NdHW.shape[1]
    features = features_NdHW.float()
    total = torch.zeros_like(features)
    entropy = features.new_zeros(())
    usage = features.new_full((len(scales), d), math.nan)
    for k, scale in enumerate(scales):
        if not keep[k]:
            continue
        z_Ndhw = F.normalize(resize_area(features - total, scale), dim=1)
        code = torch.where(z_Ndhw > 0, 1.0, -1.0) / math.sqrt(d)
        entropy = entropy + _entropy(z_Ndhw, inverse_temperature)
        usage[k] = (z_Ndhw.detach() > 0).float().mean((0, 2, 3))
        total = total + resize_linear(code, scales[-1])
    # squared distance of whole feature vectors: codes have unit length whatever d is
    commitment = F.mse_loss(features, total) * d
    kept = max(1, sum(keep))
    passed = features + (total - features).detach() if quantized else features
    return Bottleneck(passed, commitment, entropy / kept, usage)


def _entropy(z_Ndhw: Tensor, inverse_temperature: float) -> Tensor:
    logits = z_Ndhw * (4 * inverse_temperature / math.sqrt(z_Ndhw.shape[1]))
    share = torch.sigmoid(logits)
    each = F.softplus(-logits) + logits * (1 - share)
    mean = share.mean((0, 2, 3)).clamp(1e-6, 1 - 1e-6)
    whole = -(mean * mean.log() + (1 - mean) * (1 - mean).log())
    return (each.mean((0, 2, 3)).sum() - whole.sum()) / inverse_temperature
