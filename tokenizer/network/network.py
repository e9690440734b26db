"""The whole network: encoder and decoder under the public state dict's names.

In:  a `NetworkConfig`.
Out: a module whose state dict is what tokenizer.safetensors holds.
Called by: tokenizer/codec.py, tokenizer/training/train.py, tokenizer/codec/image_import.py.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizer.config import NetworkConfig
from tokenizer.network.decoder import Decoder
from tokenizer.network.encoder import Encoder


class Network(nn.Module):
    """Encoder and decoder of one configuration."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name and shape of every weight."""
        return {name: tuple(weight.shape) for name, weight in self.state_dict().items()}


def channels_last(module: nn.Module) -> None:
    """Lay the 3D convolutions' weights out as their inputs are; changes no value."""
    for weight in module.parameters():
        if weight.ndim == 5:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)


def pixels(frames_BTHWC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Frames uint8 (B,T,H,W,3) to network input (B,3,T,H,W) in [-1, 1], channels_last_3d memory."""
    return (frames_BTHWC.to(torch.float32) / 127.5 - 1).to(dtype).permute(0, 4, 1, 2, 3)


def to_uint8(x_BCTHW: Tensor) -> Tensor:
    """Network output (B,3,T,H,W) to frames uint8 (B,T,H,W,3): clamp, round to nearest."""
    return ((x_BCTHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
