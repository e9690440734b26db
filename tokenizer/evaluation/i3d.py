"""The I3D network behind FVD: Kinetics-400 logits of short clips.

In:  clips uint8 (B,T,H,W,3) of at least 9 frames; weights that `python -m tokenizer.evaluation.fetch` has put into the cache.
Out: logits float32 (B,400).

Source: I3D (Carreira and Zisserman 2017) as the FVD papers use it: frames resized bilinearly to 224x224, range [-1, 1], the 400
logits averaged over time. Convolutions and pools pad as TensorFlow's SAME (an odd pixel goes to the end). Batch norm has no
scale and eps 1e-3; it is folded into the convolutions.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.evaluation.pretrained import ScoreError, load

SIDE = 224
_POOLS = {
    "MaxPool3d_2a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_3a_3x3": ((1, 3, 3), (1, 2, 2)),
    "MaxPool3d_4a_3x3": ((3, 3, 3), (2, 2, 2)),
    "MaxPool3d_5a_2x2": ((2, 2, 2), (2, 2, 2)),
}
_ORDER = (
    "Conv3d_1a_7x7",
    "MaxPool3d_2a_3x3",
    "Conv3d_2b_1x1",
    "Conv3d_2c_3x3",
    "MaxPool3d_3a_3x3",
    "Mixed_3b",
    "Mixed_3c",
    "MaxPool3d_4a_3x3",
    "Mixed_4b",
    "Mixed_4c",
    "Mixed_4d",
    "Mixed_4e",
    "Mixed_4f",
    "MaxPool3d_5a_2x2",
    "Mixed_5b",
    "Mixed_5c",
)


class I3d(nn.Module):
    """Frozen I3D. Raises WeightsError when the weights have not been fetched."""

    def __init__(self, weights: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        arrays = load("i3d") if weights is None else weights
        self.parts = nn.ModuleDict()
        for name in _ORDER:
            if name.startswith("Conv"):
                self.parts[name] = _Unit(name, arrays, (2, 2, 2) if name == "Conv3d_1a_7x7" else (1, 1, 1))
            elif name.startswith("Mixed"):
                self.parts[name] = _Mixed(name, arrays)
        self.logits = _Unit("Logits/Conv3d_0c_1x1", arrays)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Clips (B,3,T,224,224) in [-1, 1] to logits (B,400)."""
        for name in _ORDER:
            if name in _POOLS:
                kernel, stride = _POOLS[name]
                x_BCTHW = F.max_pool3d(pad_same(x_BCTHW, kernel, stride), kernel, stride)
            else:
                x_BCTHW = self.parts[name](x_BCTHW)
        pooled = F.avg_pool3d(x_BCTHW, (2, 7, 7), stride=1)
        out: Tensor = self.logits(pooled).mean((2, 3, 4))
        return out

    @torch.no_grad()
    def features(self, frames_BTHWC: Tensor) -> Tensor:
        """Return the logits of uint8 clips (B,T,H,W,3), computed clip by clip. Raises ScoreError for fewer than 9 frames."""
        if frames_BTHWC.shape[1] < 9:
            raise ScoreError(f"FVD needs clips of at least 9 frames, not {frames_BTHWC.shape[1]}")
        device = self.logits.bias.device
        found = []
        for clip_THWC in frames_BTHWC:
            x_TCHW = clip_THWC.to(device).permute(0, 3, 1, 2).float()
            x_TCHW = F.interpolate(x_TCHW, size=(SIDE, SIDE), mode="bilinear", align_corners=False)
            x_BCTHW = (x_TCHW / 127.5 - 1).transpose(0, 1)[None].contiguous(memory_format=torch.channels_last_3d)
            found.append(self(x_BCTHW)[0].float().cpu())
        return torch.stack(found)


class _Unit(nn.Module):
    """Convolution with folded batch norm and ReLU; the last one has a bias and no ReLU."""

    def __init__(self, name: str, arrays: Mapping[str, Tensor], stride: tuple[int, ...] = (1, 1, 1)) -> None:
        super().__init__()
        weight = arrays[f"params/{name}/Conv_0/kernel"].permute(4, 3, 0, 1, 2)
        if f"params/{name}/Conv_0/bias" in arrays:
            bias, self.relu = arrays[f"params/{name}/Conv_0/bias"].reshape(-1), False
        else:
            mean, var = (arrays[f"batch_stats/{name}/BatchNorm_0/{kind}"].reshape(-1) for kind in ("mean", "var"))
            gain = (var + 1e-3).rsqrt()
            weight = weight * gain.view(-1, 1, 1, 1, 1)
            bias, self.relu = arrays[f"params/{name}/BatchNorm_0/bias"].reshape(-1) - mean * gain, True
        self.weight = nn.Parameter(weight.contiguous(memory_format=torch.channels_last_3d), requires_grad=False)
        self.bias = nn.Parameter(bias.clone(), requires_grad=False)
        self.stride = stride

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        x_BCTHW = pad_same(x_BCTHW, tuple(self.weight.shape[2:]), self.stride)
        x_BCTHW = F.conv3d(x_BCTHW, self.weight, self.bias, self.stride)
        return F.relu(x_BCTHW) if self.relu else x_BCTHW


class _Mixed(nn.Module):
    """Inception module: four branches, joined over channels."""

    def __init__(self, name: str, arrays: Mapping[str, Tensor]) -> None:
        super().__init__()
        second = "Conv3d_0b_3x3"
        self.b0 = _Unit(f"{name}/Branch_0/Conv3d_0a_1x1", arrays)
        self.b1 = nn.Sequential(*(_Unit(f"{name}/Branch_1/{unit}", arrays) for unit in ("Conv3d_0a_1x1", second)))
        self.b2 = nn.Sequential(*(_Unit(f"{name}/Branch_2/{unit}", arrays) for unit in ("Conv3d_0a_1x1", second)))
        self.b3 = _Unit(f"{name}/Branch_3/Conv3d_0b_1x1", arrays)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        pooled = F.max_pool3d(pad_same(x_BCTHW, (3, 3, 3), (1, 1, 1)), 3, stride=1)
        return torch.cat((self.b0(x_BCTHW), self.b1(x_BCTHW), self.b2(x_BCTHW), self.b3(pooled)), dim=1)


def pad_same(x_BCTHW: Tensor, kernel: tuple[int, ...], stride: tuple[int, ...]) -> Tensor:
    """Pad with zeros as TensorFlow's SAME. Max pools may use it too: their inputs are never negative."""
    pads: list[int] = []
    for size, k, s in zip(reversed(x_BCTHW.shape[2:]), reversed(kernel), reversed(stride)):
        whole = max(0, (-(-size // s) - 1) * s + k - size)
        pads += [whole // 2, whole - whole // 2]
    return F.pad(x_BCTHW, pads) if any(pads) else x_BCTHW
