"""The element-wise parts of a block as pure functions, plain or compiled into one loop each.

In:  activations and the norms' weights.
Out: activations.
Called by: pretrain.layers.

Legend: B samples, L tokens, C model width, H heads, D head dimension, F hidden width of the feed-forward.

A block's matrix products are PyTorch's own either way. What stands between them costs memory traffic, and eager PyTorch
makes several passes over it; `torch.compile` turns each of these functions, forward and backward, into one or two. They
hold no module and no state, so ZeRO-3's gathering of parameters and changing shapes do not meet the compiler.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.rope import rotate


def norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Return x / rms(x) * weight over the last axis, computed in float32, in the type of `x`."""
    wide = x.float()
    scaled = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (scaled * weight.float()).to(x.dtype)


def add_norm(x: Tensor, y: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """Return (x + y, norm(x + y))."""
    total = x + y
    return total, norm(total, weight, eps)


def swiglu(gate_up_BLF: Tensor) -> Tensor:
    """Return silu(gate) * up of the two halves of the last axis."""
    gate, up = gate_up_BLF.chunk(2, dim=-1)
    return F.silu(gate) * up


def heads(
    qkv_BLC: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos: Tensor, sin: Tensor, count: int, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Cut (B, L, 3 C) into queries, keys and values (B, H, L, D), contiguous; norm, rotate and scale by 1 / sqrt(D).

    q_weight, k_weight: (D), or None without norm. cos, sin: (B, 1, L, D / 2). Queries alone are scaled.
    """
    batch, length = qkv_BLC.shape[:2]
    q, k, v = qkv_BLC.view(batch, length, 3, count, -1).permute(2, 0, 3, 1, 4).unbind(0)
    factor = 1.0 / math.sqrt(q.shape[-1])
    q, k = q.float(), k.float()
    if q_weight is not None and k_weight is not None:
        q, k = norm(q, q_weight, eps), norm(k, k_weight, eps)
    q, k = rotate(q * factor, cos, sin), rotate(k, cos, sin)
    return q.to(qkv_BLC.dtype).contiguous(), k.to(qkv_BLC.dtype).contiguous(), v.contiguous()


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled; one compiled function serves all blocks."""
    made: Callable[..., Any] = torch.compile(function)
    return made


def choose(function: Callable[..., Any], compile: bool) -> Callable[..., Any]:
    """Return `function`, compiled if told so."""
    return compiled(function) if compile else function
