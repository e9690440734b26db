"""The element-wise parts of a block as pure functions, plain or compiled into one loop each.

Legend: B samples, L tokens, C model width, H heads, D head dimension, P = D / 2 frequency pairs, F hidden width of the feed-forward.

A block's matrix products are PyTorch's own either way. What is between them costs memory traffic: eager PyTorch makes several
passes over it, and `torch.compile` turns each of these functions, forward and backward, into one or two. They hold no module and
no state, so the compiler meets neither ZeRO-3's gathering of parameters nor changing shapes of modules.
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
    """Return x / rms(x) * weight over the last axis, computed in float32, with the type of `x`."""
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


def split_heads(
    qkv_BL3C: Tensor,
    q_weight_D: Tensor | None,
    k_weight_D: Tensor | None,
    cos_B1LP: Tensor,
    sin_B1LP: Tensor,
    heads: int,
    eps: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, contiguous (B, H, L, D): normed (without weights: not), rotated, queries / sqrt(D)."""
    batch, length = qkv_BL3C.shape[:2]
    q, k, v = qkv_BL3C.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    factor = 1.0 / math.sqrt(q.shape[-1])
    q, k = q.float(), k.float()
    if q_weight_D is not None and k_weight_D is not None:
        q, k = norm(q, q_weight_D, eps), norm(k, k_weight_D, eps)
    q, k = rotate(q * factor, cos_B1LP, sin_B1LP), rotate(k, cos_B1LP, sin_B1LP)
    return q.to(qkv_BL3C.dtype).contiguous(), k.to(qkv_BL3C.dtype).contiguous(), v.contiguous()


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled; one compiled function serves all blocks."""
    faster: Callable[..., Any] = torch.compile(function)
    return faster


def choose(function: Callable[..., Any], compile: bool) -> Callable[..., Any]:
    """Return `function`, compiled if `compile` is set."""
    return compiled(function) if compile else function
