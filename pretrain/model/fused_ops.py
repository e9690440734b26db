"""The parts of a block as pure functions, plain or compiled.

Legend: B samples, L tokens of a sample, N tokens of all samples, C model width, H heads, D head dimension, P = D / 2 frequency
pairs, F hidden width of the feed-forward.

A block's matrix products are PyTorch's own either way. What is between them costs memory traffic: eager PyTorch makes several
passes over it, and `torch.compile` makes one or two. A compiled block is two functions, before and after attention. They hold no
module and no state, so the compiler meets neither ZeRO-3's gathering of parameters nor changing shapes of modules, and they are
compiled once for all numbers of tokens.
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
    """Return queries, keys and values (B, H, L, D): normed (without weights: not), rotated, queries / sqrt(D).

    Their memory is contiguous, on a GPU in the order (B, L, H, D), which FlashAttention reads without a copy.
    """
    batch, length = qkv_BL3C.shape[:2]
    q, k, v = qkv_BL3C.view(batch, length, 3, heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    factor = 1.0 / math.sqrt(q.shape[-1])
    q, k = q.float(), k.float()
    if q_weight_D is not None and k_weight_D is not None:
        q, k = norm(q, q_weight_D, eps), norm(k, k_weight_D, eps)
    q, k = rotate(q * factor, cos_B1LP, sin_B1LP), rotate(k, cos_B1LP, sin_B1LP)
    q, k = q.to(qkv_BL3C.dtype), k.to(qkv_BL3C.dtype)
    if not qkv_BL3C.is_cuda:
        return q.contiguous(), k.contiguous(), v.contiguous()
    by_token = [x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k, v)]
    return by_token[0], by_token[1], by_token[2]


def before_attention(
    x_NC: Tensor, norm_C: Tensor, qkv_3CC: Tensor, head_norms: tuple[Tensor | None, Tensor | None],
    angles: tuple[Tensor, Tensor], heads: int, eps: float,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Return queries, keys and values (N, H, D) of a block: norm, one product, norm and rotation of the heads.

    angles: cosines and sines, float32 (N, P).
    """
    cos_1NP, sin_1NP = (angle.unsqueeze(0).unsqueeze(1) for angle in angles)
    qkv_1N3C = F.linear(norm(x_NC, norm_C, eps), qkv_3CC).unsqueeze(0)
    q, k, v = split_heads(qkv_1N3C, *head_norms, cos_1NP, sin_1NP, heads, eps)
    return q[0].transpose(0, 1), k[0].transpose(0, 1), v[0].transpose(0, 1)


def after_attention(
    x_NC: Tensor, attended_NC: Tensor, norm_C: Tensor, maps: tuple[Tensor, Tensor, Tensor], eps: float
) -> Tensor:
    """Return a block's output (N, C): output map, sum, norm, SwiGLU, sum. maps: output (C, C), gate and up (2F, C), down (C, F)."""
    out_CC, gate_up_FC, down_CF = maps
    total, normed = add_norm(x_NC, F.linear(attended_NC, out_CC), norm_C, eps)
    return total + F.linear(swiglu(F.linear(normed, gate_up_FC)), down_CF)


BACKEND = "inductor"
"""The compiler. Tests take one that needs no C++ compiler."""
VARIANTS = 16
"""Most variants of a compiled function: with and without gradients, one token, other types of weights. More are a mistake."""


@functools.cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Return `function` compiled; one compiled function serves all blocks. Past `VARIANTS` it raises: it never runs unfused."""
    from torch._dynamo import config  # a second's import, which a job that does not compile is spared

    config.recompile_limit, config.fail_on_recompile_limit_hit = VARIANTS, True
    faster: Callable[..., Any] = torch.compile(function, backend=BACKEND)
    return faster


def compiles(choice: bool | str, device: torch.device) -> bool:
    """Return whether blocks are compiled on `device`. choice: model.compile."""
    return device.type == "cuda" if choice == "auto" else bool(choice)


def choose(function: Callable[..., Any], compile: bool) -> Callable[..., Any]:
    """Return `function`, compiled if `compile` is set."""
    return compiled(function) if compile else function


def any_length(*tensors: Tensor) -> None:
    """Tell the compiler that the first axis of `tensors` changes from call to call, so that it compiles once for all lengths."""
    for tensor in tensors:
        torch._dynamo.maybe_mark_dynamic(tensor, 0)  # noqa: SLF001
