"""A tiny tokenizer with random weights, a configuration that names it, and stand-ins for the scoring networks."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from pipeline.tokenizer_jobs import evaluate
from tokenizer.codec import save
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network

NETWORK = NetworkConfig(bits=8, width=8, patch=2, multipliers=(1, 1, 1), blocks=1, groups=1)
CONFIG = """
run: {{dir: {folder}}}
corpus: {{videos: ["{clips}/carphone_pristine.mp4"]}}
tokenizer:
  weights: {folder}/tokenizer
  network: {{bits: 8, width: 8, patch: 2, multipliers: [1, 1, 1], blocks: 1, groups: 1}}
  loss: {{perceptual: 0.0, perceptual_net: none, gan: 0.0}}
  training:
    buckets: [{{frames: 9, height: 32, width: 48, batch: 1}}]
"""


@pytest.fixture
def config(tmp_path: Path, clips: Path) -> Path:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    path = tmp_path / "config.yaml"
    path.write_text(CONFIG.format(folder=tmp_path, clips=clips))
    save(tmp_path / "tokenizer", NETWORK, Network(NETWORK).state_dict(), {})
    return path


class PixelDistance:
    """Stands in for LPIPS: the mean absolute difference of each frame, of pixels in [-1, 1]."""

    kernels = (torch.zeros(1),)

    def __init__(self, net: str) -> None:
        self.net = net

    def __call__(self, a_N3HW: Tensor, b_N3HW: Tensor) -> Tensor:
        return (a_N3HW - b_N3HW).abs().mean((1, 2, 3))


class PixelFeatures:
    """Stands in for I3D: the mean colours of each frame."""

    def features(self, x_BTHWC: Tensor) -> Tensor:
        return x_BTHWC.float().mean((2, 3)).flatten(1)


@pytest.fixture
def scoring_networks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores of every kind are computed, whether the true weights were fetched or not."""
    monkeypatch.setattr(evaluate, "available", lambda name: True)
    monkeypatch.setattr(evaluate, "Lpips", PixelDistance)
    monkeypatch.setattr(evaluate, "I3d", PixelFeatures)
