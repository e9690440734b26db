"""Decoder of the causal 3D network: quantised features to pixels.

In:  features f_BCTHW of d channels, T' = 1 + n, and optionally a `Stream`.
Out: frames x_BCTHW, nominally in [-1, 1], T = 1 + s*n.
Called by: tokenizer/codec.py and tokenizer/training/train.py.

Names follow the public Infinity image tokenizer's state dict: `up.0` is the finest level.
"""

from __future__ import annotations

from torch import Tensor, nn

from tokenizer.config import NetworkConfig
from tokenizer.network.blocks import Middle, ResidualBlock, Upsample, unfold
from tokenizer.network.causal_conv import CausalConv, FrameNorm, Stream, name_slots


class Level(nn.Module):
    """Residual blocks of one resolution and the up-sampling behind them (none at the finest level)."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, up: bool, temporal: bool) -> None:
        super().__init__()
        kinds = {"groups": config.groups, "kernel_t": config.kernel_t}
        self.block = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else outputs, outputs, **kinds) for i in range(config.blocks + 1)
        )
        self.upsample = Upsample(outputs, temporal=temporal, kernel_t=config.kernel_t) if up else None

    def forward(self, x_BCTHW: Tensor, stream: Stream | None) -> Tensor:
        """Blocks, then the up-sampling."""
        for block in self.block:
            x_BCTHW = block(x_BCTHW, stream)
        return x_BCTHW if self.upsample is None else self.upsample(x_BCTHW, stream)


class Decoder(nn.Module):
    """conv_in from d channels, middle, levels from the coarsest to the finest, norm_out, conv_out to 3 channels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        self.patch = config.patch
        self.conv_in = CausalConv(config.bits, widths[-1], kernel_t=config.kernel_t)
        self.mid = Middle(widths[-1], groups=config.groups, kernel_t=config.kernel_t, attention=config.middle_attention)
        self.up = nn.ModuleList(
            Level(widths[min(last, i + 1)], width, config, up=i > 0, temporal=i > 0 and config.temporal_at(i - 1))
            for i, width in enumerate(widths)
        )
        self.norm_out = FrameNorm(widths[0], config.groups)
        self.conv_out = CausalConv(widths[0], 3 * config.patch**2, kernel_t=config.kernel_t, gain=0.3)
        name_slots(self)

    def forward(self, f_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """(B,d,T',h,w) to (B,3,T,H,W); in a stream the first latent gives one frame, each later one `temporal_stride`."""
        h = self.mid(self.conv_in(f_BCTHW, stream), stream)
        for level in reversed(self.up):
            h = level(h, stream)
        return unfold(self.conv_out(h, stream, self.norm_out), self.patch)
