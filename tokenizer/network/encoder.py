"""Encoder of the causal 3D network: pixels to continuous features.

In:  frames x_BCTHW in [-1, 1], T = 1 + s*n, and optionally a `Stream`.
Out: features f_BCTHW of d channels, T' = 1 + n, rows and columns divided by the spatial stride.
Called by: tokenizer/codec.py and tokenizer/training/train.py.

Names follow the public Infinity image tokenizer's state dict, so its weights load after inflation (tokenizer/codec/inflate.py).
"""

from __future__ import annotations

from torch import Tensor, nn

from tokenizer.config import NetworkConfig
from tokenizer.network.blocks import Downsample, Middle, ResidualBlock, fold
from tokenizer.network.causal_conv import CausalConv, FrameNorm, Stream, name_slots


class Level(nn.Module):
    """Residual blocks of one resolution and the strided convolution behind them (none at the last level)."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, down: bool, temporal: bool) -> None:
        super().__init__()
        kinds = {"groups": config.groups, "kernel_t": config.kernel_t}
        self.block = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs, **kinds) for i in range(config.blocks))
        self.downsample = Downsample(outputs, temporal=temporal, kernel_t=config.kernel_t) if down else None

    def forward(self, x_BCTHW: Tensor, stream: Stream | None) -> Tensor:
        """Blocks, then the down-sampling."""
        for block in self.block:
            x_BCTHW = block(x_BCTHW, stream)
        return x_BCTHW if self.downsample is None else self.downsample(x_BCTHW, stream)


class Encoder(nn.Module):
    """conv_in, levels, middle, norm_out, conv_out to d channels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        self.patch = config.patch
        self.conv_in = CausalConv(3 * config.patch**2, config.width, kernel_t=config.kernel_t)
        self.down = nn.ModuleList(
            Level(widths[i - 1] if i else config.width, width, config, down=i < last, temporal=config.temporal_at(i))
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], groups=config.groups, kernel_t=config.kernel_t, attention=config.middle_attention)
        self.norm_out = FrameNorm(widths[-1], config.groups)
        self.conv_out = CausalConv(widths[-1], config.bits, kernel_t=config.kernel_t)
        name_slots(self)

    def forward(self, x_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """(B,3,T,H,W) to (B,d,T',h,w); `stream` is advanced and may hold back frames of an unfinished latent."""
        h = self.conv_in(fold(x_BCTHW, self.patch), stream)
        for level in self.down:
            h = level(h, stream)
        out: Tensor = self.conv_out(self.mid(h, stream), stream, self.norm_out)
        return out
