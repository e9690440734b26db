"""The parts of a LLaMA block: linear map, norm, attention, feed-forward. Each initialises its own parameters.

Called by: pretrain.model.

Legend: B samples, L tokens, C model width, H heads, D head dimension, F hidden width of the feed-forward.

Every parameter gets its first value inside the `__init__` of the module that owns it, because `deepspeed.zero.Init`
cuts a module's parameters up as soon as that returns: what a parent did to them later would be lost.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.attention import Attend
from pretrain.config import ModelConfig
from pretrain.rope import rotate


class Linear(nn.Linear):
    """Linear map whose weights start normal with deviation `gain` / sqrt(inputs), its bias at 0."""

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        nn.init.normal_(self.weight, std=gain / math.sqrt(inputs))
        if bias:
            nn.init.zeros_(self.bias)


class Table(nn.Embedding):
    """Embedding table whose rows start normal with deviation `std`."""

    def __init__(self, rows: int, width: int, *, std: float) -> None:
        super().__init__(rows, width)
        nn.init.normal_(self.weight, std=std)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in float32."""

    def __init__(self, width: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """Return the same shape and type."""
        return F.rms_norm(x, (x.shape[-1],), self.weight, self.eps)


class SelfAttention(nn.Module):
    """Queries, keys and values in one product, optional norm on queries and keys, rotation, attention, output map."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        size = config.width // config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.q_norm = RMSNorm(size) if config.qk_norm else nn.Identity()
        self.k_norm = RMSNorm(size) if config.qk_norm else nn.Identity()
        self.out = Linear(config.width, config.width, gain=1 / math.sqrt(2 * config.layers))

    def forward(self, x_BLC: Tensor, cos: Tensor, sin: Tensor, attend: Attend, layer: int) -> Tensor:
        """Return (B, L, C)."""
        batch, length, width = x_BLC.shape
        qkv = self.qkv(x_BLC).view(batch, length, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        q_BHLD, k_BHLD, v_BHLD = qkv.unbind(0)
        q_BHLD = rotate(self.q_norm(q_BHLD), cos, sin)
        k_BHLD = rotate(self.k_norm(k_BHLD), cos, sin)
        seen = attend(layer, q_BHLD, k_BHLD, v_BHLD)
        out: Tensor = self.out(seen.transpose(1, 2).reshape(batch, length, width))
        return out


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = ffn_width(config)
        self.gate_up = Linear(config.width, 2 * hidden)
        self.down = Linear(hidden, config.width, gain=1 / math.sqrt(2 * config.layers))

    def forward(self, x_BLC: Tensor) -> Tensor:
        """Return (B, L, C)."""
        gate, up = self.gate_up(x_BLC).chunk(2, dim=-1)
        out: Tensor = self.down(F.silu(gate) * up)
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention_norm = RMSNorm(config.width)
        self.attention = SelfAttention(config)
        self.feed_norm = RMSNorm(config.width)
        self.feed = FeedForward(config)

    def forward(self, x_BLC: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """Return (B, L, C)."""
        x_BLC = x_BLC + self.attention(self.attention_norm(x_BLC), cos, sin, attend, self.layer)
        out: Tensor = x_BLC + self.feed(self.feed_norm(x_BLC))
        return out


def recomputed(block: Block, x_BLC: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
    """Run a block without keeping its activations; the backward pass makes them again."""
    out: Tensor = checkpoint(block, x_BLC, cos, sin, attend, use_reentrant=False, preserve_rng_state=False)
    return out


def ffn_width(config: ModelConfig) -> int:
    """Hidden width of SwiGLU: as configured, or 8/3 of the width rounded up to a multiple of 64."""
    return config.ffn or math.ceil(config.width * 8 / 3 / 64) * 64
