"""The parts of a LLaMA block: linear map, norm, attention, feed-forward. Each initialises its own parameters.

Called by: pretrain.model.

Legend: B samples, L tokens, C model width, H heads, D head dimension, F hidden width of the feed-forward.

Every parameter gets its first value inside the `__init__` of the module that owns it, because `deepspeed.zero.Init`
cuts a module's parameters up as soon as that returns: what a parent did to them later would be lost.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.model import fused_ops
from pretrain.model.attention import Attend
from pretrain.model.config import ModelConfig

EPS = 1e-6


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

    def __init__(self, width: int, *, compile: bool = False) -> None:
        super().__init__()
        self.compile_parts = compile
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, y: Tensor | None = None, selective: bool = False) -> tuple[Tensor, Tensor]:
        """Return (x, norm(x)), or with `y` (x + y, norm(x + y)). selective: made again in the backward pass."""
        run = recomputed if selective else plainly
        if y is None:
            return x, run(fused_ops.choose(fused_ops.norm, self.compile_parts), x, self.weight, EPS)
        total, normed = run(fused_ops.choose(fused_ops.add_norm, self.compile_parts), x, y, self.weight, EPS)
        return total, normed


class SelfAttention(nn.Module):
    """Queries, keys and values in one product, optional norm on queries and keys, rotation, attention, output map."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads, self.compile_parts = config.heads, config.compile
        size = config.width // config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.q_norm = nn.Parameter(torch.ones(size)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(size)) if config.qk_norm else None
        self.out = Linear(config.width, config.width, gain=1 / math.sqrt(2 * config.layers))

    def forward(self, x_BLC: Tensor, cos: Tensor, sin: Tensor, attend: Attend, layer: int, selective: bool = False) -> Tensor:
        """Return (B, L, C). cos, sin: float32 (B, 1, L, D / 2). selective: norm and rotation are made again."""
        run, cut = recomputed if selective else plainly, fused_ops.choose(fused_ops.heads, self.compile_parts)
        q_BHLD, k_BHLD, v_BHLD = run(cut, self.qkv(x_BLC), self.q_norm, self.k_norm, cos, sin, self.heads, EPS)
        seen = attend(layer, q_BHLD, k_BHLD, v_BHLD)
        out: Tensor = self.out(seen.transpose(1, 2).reshape(x_BLC.shape))
        return out


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.compile_parts = config.compile
        hidden = ffn_width(config)
        self.gate_up = Linear(config.width, 2 * hidden)
        self.down = Linear(hidden, config.width, gain=1 / math.sqrt(2 * config.layers))

    def forward(self, x_BLC: Tensor, selective: bool = False) -> Tensor:
        """Return (B, L, C). selective: the product of gate and up is made again."""

        def rest(gate_up_BLF: Tensor) -> Tensor:
            out: Tensor = self.down(fused_ops.choose(fused_ops.swiglu, self.compile_parts)(gate_up_BLF))
            return out

        # The way back stops as soon as `down` has its input: its product is not made twice.
        out: Tensor = (recomputed if selective else plainly)(rest, self.gate_up(x_BLC))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.attention_norm = RMSNorm(config.width, compile=config.compile)
        self.attention = SelfAttention(config)
        self.feed_norm = RMSNorm(config.width, compile=config.compile)
        self.feed = FeedForward(config)

    def forward(self, x_BLC: Tensor, cos: Tensor, sin: Tensor, attend: Attend, selective: bool = False) -> Tensor:
        """Return (B, L, C). selective: keep matrix products and attention for the backward pass, make the rest again."""
        _, normed = self.attention_norm(x_BLC, selective=selective)
        attended = self.attention(normed, cos, sin, attend, self.layer, selective)
        x_BLC, normed = self.feed_norm(x_BLC, attended, selective)
        out: Tensor = x_BLC + self.feed(normed, selective)
        return out


def recomputed(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function or block without keeping its activations; the backward pass makes them again."""
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)


def plainly(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function."""
    return function(*given)


def ffn_width(config: ModelConfig) -> int:
    """Hidden width of SwiGLU: as configured, or 8/3 of the width rounded up to a multiple of 64."""
    return config.ffn or math.ceil(config.width * 8 / 3 / 64) * 64
