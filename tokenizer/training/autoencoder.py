"""DOC from tokenizer/training/trainer.py."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizer.config import TokenizerConfig
from tokenizer.network.network import Network
from tokenizer.quantization.scale_schedule import Scales
from tokenizer.training.straight_through import Bottleneck, bottleneck


class Autoencoder(nn.Module):
    """The network with the quantiser between its halves, as training runs it."""

    def __init__(self, config: TokenizerConfig) -> None:
        super().__init__()
        self.network = Network(config.network)
        self.loss, self.dtype = config.loss, torch.bfloat16 if config.training.dtype == "bfloat16" else torch.float32

    def forward(self, x_BCTHW: Tensor, scales: Scales, keep: list[bool], quantized: bool) -> tuple[Tensor, Bottleneck]:
        """Reconstruction float32 (B,3,T,H,W) and the bottleneck; `quantized` false passes the features through as they are."""
        with torch.autocast(x_BCTHW.device.type, self.dtype, enabled=self.dtype != torch.float32):
            features = self.network.encoder(x_BCTHW)
        middle = bottleneck(
            features.float().transpose(1, 2).flatten(0, 1), scales, keep, self.loss.inverse_temperature, quantized
        )
        joined = middle.quantized.unflatten(0, (x_BCTHW.shape[0], -1)).transpose(1, 2)
        with torch.autocast(x_BCTHW.device.type, self.dtype, enabled=self.dtype != torch.float32):
            recon = self.network.decoder(joined.contiguous(memory_format=torch.channels_last_3d))
        return recon.float(), middle
