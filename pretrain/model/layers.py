"""The parts of a LLaMA block: linear map, embedding, norm, attention, feed-forward; and the block.

Legend: B samples, L tokens, C model width, H heads, D head dimension, P = D / 2 frequency pairs, F hidden width of the feed-forward.

Every parameter is initialized in the `__init__` of the module that owns it, because `deepspeed.zero.Init` partitions a module's
parameters as soon as that returns: what a parent module did to them afterwards would be lost.

The backward pass recomputes either whole blocks (`checkpointed`), or with `selective` the norms, the rotation and SwiGLU of each
block, so that only matrix products and attention are kept.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pretrain.attention.attention import Attend
from pretrain.model import fused_ops
from pretrain.model.config import ModelConfig

EPS = 1e-6


class Linear(nn.Linear):
    """Linear map; weights start normal with standard deviation `gain` / sqrt(inputs), the bias at 0."""

    def __init__(self, inputs: int, outputs: int, *, gain: float = 1.0, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias=bias)
        nn.init.normal_(self.weight, std=gain / math.sqrt(inputs))
        if bias:
            nn.init.zeros_(self.bias)


class Embedding(nn.Embedding):
    """Embedding; rows start normal with standard deviation `std`."""

    def __init__(self, rows: int, width: int, *, std: float) -> None:
        super().__init__(rows, width)
        nn.init.normal_(self.weight, std=std)


class RMSNorm(nn.Module):
    """x / rms(x) * weight over the last axis, in float32."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor, y: Tensor | None = None, selective: bool = False) -> tuple[Tensor, Tensor]:
        """Return (x, norm(x)), or with `y` (x + y, norm(x + y)). selective: recompute it in the backward pass."""
        run = checkpointed if selective else call
        if y is None:
            return x, run(fused_ops.norm, x, self.weight, EPS)
        total, normed = run(fused_ops.add_norm, x, y, self.weight, EPS)
        return total, normed


class SelfAttention(nn.Module):
    """Queries, keys and values in one product, optional norm of queries and keys, rotation, attention, output map."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        size = config.width // config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.q_norm = nn.Parameter(torch.ones(size)) if config.qk_norm else None
        self.k_norm = nn.Parameter(torch.ones(size)) if config.qk_norm else None
        self.out = Linear(config.width, config.width, gain=1 / math.sqrt(2 * config.layers))

    def forward(
        self, x_BLC: Tensor, cos_B1LP: Tensor, sin_B1LP: Tensor, attend: Attend, layer: int, selective: bool = False
    ) -> Tensor:
        """Return (B, L, C). selective: recompute norm and rotation in the backward pass."""
        run = checkpointed if selective else call
        q_BHLD, k_BHLD, v_BHLD = run(
            fused_ops.split_heads, self.qkv(x_BLC), self.q_norm, self.k_norm, cos_B1LP, sin_B1LP, self.heads, EPS
        )
        attended_BHLD = attend(layer, q_BHLD, k_BHLD, v_BHLD)
        out: Tensor = self.out(attended_BHLD.transpose(1, 2).reshape(x_BLC.shape))
        return out


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) * up(x)), gate and up in one product."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        hidden = ffn_width(config)
        self.gate_up = Linear(config.width, 2 * hidden)
        self.down = Linear(hidden, config.width, gain=1 / math.sqrt(2 * config.layers))

    def forward(self, x_BLC: Tensor, selective: bool = False) -> Tensor:
        """Return (B, L, C). selective: recompute silu(gate) * up in the backward pass."""

        def rest(gate_up_BLF: Tensor) -> Tensor:
            out: Tensor = self.down(fused_ops.swiglu(gate_up_BLF))
            return out

        # Recomputation stops as soon as `down` has its input again: its matrix product is not repeated.
        out: Tensor = (checkpointed if selective else call)(rest, self.gate_up(x_BLC))
        return out


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.compiled = layer, config.compile
        self.attention_norm = RMSNorm(config.width)
        self.attention = SelfAttention(config)
        self.feed_norm = RMSNorm(config.width)
        self.feed = FeedForward(config)

    def forward(self, x_BLC: Tensor, cos_B1LP: Tensor, sin_B1LP: Tensor, attend: Attend, selective: bool = False) -> Tensor:
        """Return (B, L, C). selective: keep matrix products and attention for the backward pass, recompute the rest.

        Compiled, that is what the compiler chooses by itself.
        """
        if x_BLC.is_cuda if self.compiled == "auto" else self.compiled:
            return self._compiled(x_BLC, cos_B1LP, sin_B1LP, attend)
        _, normed_BLC = self.attention_norm(x_BLC, selective=selective)
        attended_BLC = self.attention(normed_BLC, cos_B1LP, sin_B1LP, attend, self.layer, selective)
        x_BLC, normed_BLC = self.feed_norm(x_BLC, attended_BLC, selective)
        out: Tensor = x_BLC + self.feed(normed_BLC, selective)
        return out

    def _compiled(self, x_BLC: Tensor, cos_B1LP: Tensor, sin_B1LP: Tensor, attend: Attend) -> Tensor:
        """Return (B, L, C) by two compiled functions, which take the parameters that this block's submodules hold."""
        before, after = (fused_ops.compiled(part) for part in (fused_ops.before_attention, fused_ops.after_attention))
        batch, length = x_BLC.shape[:2]
        x_NC = x_BLC.flatten(0, 1)
        angles = tuple(angle[:, 0].expand(batch, -1, -1).flatten(0, 1) for angle in (cos_B1LP, sin_B1LP))
        fused_ops.any_length(x_NC, *angles)
        own = self.attention
        heads_NHD = before(x_NC, self.attention_norm.weight, own.qkv.weight, (own.q_norm, own.k_norm), angles, own.heads, EPS)
        q_BHLD, k_BHLD, v_BHLD = (part.unflatten(0, (batch, length)).transpose(1, 2) for part in heads_NHD)
        attended_NC = attend(self.layer, q_BHLD, k_BHLD, v_BHLD).transpose(1, 2).reshape(x_NC.shape)
        fused_ops.any_length(attended_NC)
        maps = own.out.weight, self.feed.gate_up.weight, self.feed.down.weight
        out_NC: Tensor = after(x_NC, attended_NC, self.feed_norm.weight, maps, EPS)
        return out_NC.view(x_BLC.shape)


def checkpointed(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function or block without keeping its activations; the backward pass recomputes them."""
    return checkpoint(function, *given, use_reentrant=False, preserve_rng_state=False)


def call(function: Callable[..., Any], *given: Any) -> Any:
    """Call a function: the counterpart of `checkpointed`."""
    return function(*given)


def ffn_width(config: ModelConfig) -> int:
    """Return the hidden width of SwiGLU: as configured, or 8/3 of the width rounded up to a multiple of 64."""
    return config.ffn or math.ceil(config.width * 8 / 3 / 64) * 64
