"""The causal 3D autoencoder: encoder and decoder, named as in the public Infinity image tokenizer's state dict.

    x (B,3,T,H,W) ─▶ fold ─▶ conv_in ─▶ down.0 .. down.L ─▶ mid ─▶ norm, SiLU, conv_out ─▶ features (B,d,T',h,w)
    features ─▶ conv_in ─▶ mid ─▶ up.L .. up.0 ─▶ norm, SiLU, conv_out ─▶ unfold ─▶ x, nominally in [-1, 1]

With temporal stride s, T = 1 + s*n frames become T' = 1 + n latent frames: the first frame is coded alone, as an image, so an
image tokenizer's weights fit after inflation (tokenizer/codec/image_import.py). Level 0 is the finest.

A `Stream` carries the history between chunks of a clip: chunk after chunk gives what the whole clip gives.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokenizer.config import NetworkConfig
from tokenizer.network.blocks import Downsample, Middle, ResidualBlock, Upsample, fold, unfold
from tokenizer.network.causal_conv import CausalConv, Stream, name_slots
from tokenizer.network.frame_norm import FrameNorm


class Network(nn.Module):
    """Encoder and decoder of one configuration; its state dict is what tokenizer.safetensors holds."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        self.config = config
        self.encoder = Encoder(config)
        self.decoder = Decoder(config)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every weight by name."""
        return {name: tuple(weight.shape) for name, weight in self.state_dict().items()}


class Encoder(nn.Module):
    """Pixels to continuous features of d channels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        self.patch = config.patch
        self.conv_in = CausalConv(3 * config.patch**2, config.width, kernel_t=config.kernel_t)
        self.down = nn.ModuleList(
            EncoderLevel(widths[i - 1] if i else config.width, width, config, down=i < last, temporal=config.temporal_at(i))
            for i, width in enumerate(widths)
        )
        self.mid = Middle(widths[-1], groups=config.groups, kernel_t=config.kernel_t, attention=config.middle_attention)
        self.norm_out = FrameNorm(widths[-1], config.groups)
        self.conv_out = CausalConv(widths[-1], config.bits, kernel_t=config.kernel_t)
        name_slots(self)

    def forward(self, x_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """(B,3,T,H,W) to (B,d,T',h,w). In a stream, frames of an unfinished latent frame are held back for the next chunk."""
        h = self.conv_in(fold(x_BCTHW, self.patch), stream)
        for level in self.down:
            h = level(h, stream)
        out: Tensor = self.conv_out(self.mid(h, stream), stream, self.norm_out)
        return out


class EncoderLevel(nn.Module):
    """Residual blocks of one resolution, then the strided convolution to the next (none at the coarsest level)."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, down: bool, temporal: bool) -> None:
        super().__init__()
        kinds = {"groups": config.groups, "kernel_t": config.kernel_t}
        self.block = nn.ModuleList(ResidualBlock(inputs if i == 0 else outputs, outputs, **kinds) for i in range(config.blocks))
        self.downsample = Downsample(outputs, temporal=temporal, kernel_t=config.kernel_t) if down else None

    def forward(self, x_BCTHW: Tensor, stream: Stream | None) -> Tensor:
        """Run the blocks, then the down-sampling."""
        for block in self.block:
            x_BCTHW = block(x_BCTHW, stream)
        return x_BCTHW if self.downsample is None else self.downsample(x_BCTHW, stream)


class Decoder(nn.Module):
    """Quantized features of d channels to pixels."""

    def __init__(self, config: NetworkConfig) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        last = len(widths) - 1
        self.patch = config.patch
        self.conv_in = CausalConv(config.bits, widths[-1], kernel_t=config.kernel_t)
        self.mid = Middle(widths[-1], groups=config.groups, kernel_t=config.kernel_t, attention=config.middle_attention)
        self.up = nn.ModuleList(
            DecoderLevel(widths[min(last, i + 1)], width, config, up=i > 0, temporal=i > 0 and config.temporal_at(i - 1))
            for i, width in enumerate(widths)
        )
        self.norm_out = FrameNorm(widths[0], config.groups)
        self.conv_out = CausalConv(widths[0], 3 * config.patch**2, kernel_t=config.kernel_t, gain=0.3)
        name_slots(self)

    def forward(self, f_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """(B,d,T',h,w) to (B,3,T,H,W). The first latent frame gives one frame, each later one `temporal_stride` frames."""
        h = self.mid(self.conv_in(f_BCTHW, stream), stream)
        for level in reversed(self.up):
            h = level(h, stream)
        return unfold(self.conv_out(h, stream, self.norm_out), self.patch)


class DecoderLevel(nn.Module):
    """Residual blocks of one resolution, then the up-sampling to the next (none at the finest level)."""

    def __init__(self, inputs: int, outputs: int, config: NetworkConfig, *, up: bool, temporal: bool) -> None:
        super().__init__()
        kinds = {"groups": config.groups, "kernel_t": config.kernel_t}
        self.block = nn.ModuleList(
            ResidualBlock(inputs if i == 0 else outputs, outputs, **kinds) for i in range(config.blocks + 1)
        )
        self.upsample = Upsample(outputs, temporal=temporal, kernel_t=config.kernel_t) if up else None

    def forward(self, x_BCTHW: Tensor, stream: Stream | None) -> Tensor:
        """Run the blocks, then the up-sampling."""
        for block in self.block:
            x_BCTHW = block(x_BCTHW, stream)
        return x_BCTHW if self.upsample is None else self.upsample(x_BCTHW, stream)


def channels_last(module: nn.Module) -> None:
    """Store 3D convolution weights in the memory layout of their inputs; no value changes."""
    for weight in module.parameters():
        if weight.ndim == 5:
            weight.data = weight.data.contiguous(memory_format=torch.channels_last_3d)


def pixels(frames_BTHWC: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Frames uint8 (B,T,H,W,3) to network input (B,3,T,H,W) in [-1, 1], in channels_last_3d memory."""
    return (frames_BTHWC.to(torch.float32) / 127.5 - 1).to(dtype).permute(0, 4, 1, 2, 3)


def to_uint8(x_BCTHW: Tensor) -> Tensor:
    """Network output (B,3,T,H,W) to frames uint8 (B,T,H,W,3): clamped and rounded to nearest."""
    return ((x_BCTHW.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 4, 1).contiguous()
