"""Building blocks of the autoencoder: residual block, per-frame attention, down- and up-sampling, folding of pixels.

In:  activations x_BCTHW, best in channels_last_3d memory, and optionally the `Stream` of a clip that comes in chunks.
Out: activations of the same layout.

Legend: B clips, C channels, T frames, H rows, W columns, N = B*T single frames.

Only the convolutions look at other frames, and only at earlier ones (causal_conv.py); everything else acts on one frame.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.network.causal_conv import CausalConv, Stream
from tokenizer.network.frame_norm import FrameNorm, clips_of, frames_of


class ResidualBlock(nn.Module):
    """norm, SiLU, conv, norm, SiLU, conv; plus the input, through a 1x1 convolution when the width changes."""

    def __init__(self, inputs: int, outputs: int, *, groups: int, kernel_t: int) -> None:
        super().__init__()
        self.norm1 = FrameNorm(inputs, groups)
        self.conv1 = CausalConv(inputs, outputs, kernel_t=kernel_t)
        self.norm2 = FrameNorm(outputs, groups)
        # A new block returns its input: the shallow path trains first.
        self.conv2 = CausalConv(outputs, outputs, kernel_t=kernel_t, gain=0.0)
        self.nin_shortcut = CausalConv(inputs, outputs, 1, kernel_t=1) if inputs != outputs else None

    def forward(self, x_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """Return `outputs` channels at the same T, H, W."""
        if x_BCTHW.device.type == "cuda" and x_BCTHW.numel() and not torch.is_grad_enabled():
            return self._on_cuda(x_BCTHW, stream)
        h = self.conv1(x_BCTHW, stream, self.norm1)
        h = self.conv2(h, stream, self.norm2)
        out: Tensor = h + (x_BCTHW if self.nin_shortcut is None else self.nin_shortcut(x_BCTHW, stream))
        return out

    def _on_cuda(self, x_BCTHW: Tensor, stream: Stream | None) -> Tensor:
        """Compute the same without gradients; biases are added where the result is read anyway, not in passes of their own."""
        from tokenizer.network import cuda_kernels

        first, last = self.conv1.conv.bias, self.conv2.conv.bias
        assert first is not None and last is not None
        h = self.conv1(x_BCTHW, stream, self.norm1, biased=False)
        h = self.conv2(h, stream, self.norm2, before_C=first, biased=False)
        residual = x_BCTHW if self.nin_shortcut is None else self.nin_shortcut(x_BCTHW, stream)
        memory = torch.channels_last_3d
        return cuda_kernels.add_residual(h.contiguous(memory_format=memory), residual.contiguous(memory_format=memory), last)


class FrameAttention(nn.Module):
    """Residual self-attention over the positions of one frame, one head (option `middle_attention`)."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = FrameNorm(channels, groups, act=False)
        self.q = CausalConv(channels, channels, 1, kernel_t=1)
        self.k = CausalConv(channels, channels, 1, kernel_t=1)
        self.v = CausalConv(channels, channels, 1, kernel_t=1)
        self.proj_out = CausalConv(channels, channels, 1, kernel_t=1)

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Return the result, of the same shape."""
        if x_BCTHW.shape[2] == 0:
            return x_BCTHW
        h = self.norm(x_BCTHW)
        q, k, v = (frames_of(conv(h)).flatten(2).transpose(1, 2) for conv in (self.q, self.k, self.v))
        y_NLC = F.scaled_dot_product_attention(q, k, v)
        y_NCHW = y_NLC.transpose(1, 2).unflatten(2, x_BCTHW.shape[3:])
        out: Tensor = x_BCTHW + self.proj_out(clips_of(y_NCHW, x_BCTHW.shape[0]))
        return out


class Middle(nn.Module):
    """Two residual blocks with optional per-frame attention between them."""

    def __init__(self, channels: int, *, groups: int, kernel_t: int, attention: bool) -> None:
        super().__init__()
        self.block_1 = ResidualBlock(channels, channels, groups=groups, kernel_t=kernel_t)
        self.attn_1 = FrameAttention(channels, groups) if attention else None
        self.block_2 = ResidualBlock(channels, channels, groups=groups, kernel_t=kernel_t)

    def forward(self, x_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """Return the result, of the same shape."""
        x_BCTHW = self.block_1(x_BCTHW, stream)
        if self.attn_1 is not None:
            x_BCTHW = self.attn_1(x_BCTHW)
        out: Tensor = self.block_2(x_BCTHW, stream)
        return out


class Downsample(nn.Module):
    """Strided convolution that halves rows and columns; with `temporal`, 1 + 2n frames become 1 + n."""

    def __init__(self, channels: int, *, temporal: bool, kernel_t: int) -> None:
        super().__init__()
        self.conv = CausalConv(
            channels, channels, kernel_t=3 if temporal else kernel_t, stride=2, stride_t=2 if temporal else 1
        )

    def forward(self, x_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """(B,C,T,H,W) to (B,C,T',H/2,W/2)."""
        out: Tensor = self.conv(x_BCTHW, stream)
        return out


class Upsample(nn.Module):
    """Nearest-neighbour doubling of rows and columns, then a convolution; with `temporal`, 1 + n frames become 1 + 2n."""

    def __init__(self, channels: int, *, temporal: bool, kernel_t: int) -> None:
        super().__init__()
        self.conv = CausalConv(channels, channels, kernel_t=3 if temporal else kernel_t, gain=0.05)
        with torch.no_grad():
            # Training starts from plain nearest-neighbour up-sampling.
            self.conv.conv.weight[:, :, -1, 1, 1] += torch.eye(channels)
        self.temporal = temporal

    def forward(self, x_BCTHW: Tensor, stream: Stream | None = None) -> Tensor:
        """(B,C,T,H,W) to (B,C,T',2H,2W), where T' = 2T - 1 at the beginning of a clip and 2T later in a stream."""
        first = stream is None or self.conv.slot not in stream.history
        if self.temporal:
            x_BCTHW = x_BCTHW.repeat_interleave(2, dim=2)
            if first:
                x_BCTHW = x_BCTHW[:, :, 1:]
        if x_BCTHW.shape[2]:
            x_NCHW = F.interpolate(frames_of(x_BCTHW), scale_factor=2.0, mode="nearest")
            x_BCTHW = clips_of(x_NCHW, x_BCTHW.shape[0])
        out: Tensor = self.conv(x_BCTHW, stream)
        return out


def fold(x_BCTHW: Tensor, patch: int) -> Tensor:
    """Fold patch x patch pixels into channels: (B,C,T,H,W) to (B,C*p*p,T,H/p,W/p)."""
    if patch == 1:
        return x_BCTHW
    return clips_of(
        F.pixel_unshuffle(frames_of(x_BCTHW), patch).contiguous(memory_format=torch.channels_last), x_BCTHW.shape[0]
    )


def unfold(x_BCTHW: Tensor, patch: int) -> Tensor:
    """Inverse of `fold`."""
    if patch == 1:
        return x_BCTHW
    if x_BCTHW.shape[2] == 0:
        b, c, t, h, w = x_BCTHW.shape
        return x_BCTHW.reshape(b, c // patch**2, t, h * patch, w * patch)
    return clips_of(F.pixel_shuffle(frames_of(x_BCTHW), patch), x_BCTHW.shape[0])
