"""Triton kernels of the pairs in which a token sees later tokens of its own scale: attention added to what is there, in place.

In:  queries (scaled), keys, values, output and gradients (N, H, D); log-sum-exp float32 (H, N); tiles of scales (varlen_plan.py).
Out: output and logarithm, or the gradients of q, k and v, changed in place. A token belongs to one scale, so no two programs write
     to the same place and no sum depends on timing.

Legend: N tokens, H heads, D head dimension. A program has one tile of TILE tokens of a scale, and one head.

This module imports triton, which torch for CUDA brings along; it is imported only where CUDA tensors are computed.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from pretrain.attention.varlen_plan import TILE

STAGES = 2
"""Tiles loaded ahead. Registers and shared memory of either kernel stay within what a card of 100 kB has (proof_kernels.py)."""


@triton.jit  # type: ignore[untyped-decorator]
def _rows(pointer: tl.tensor, stride: tl.tensor, rows: tl.tensor, column: tl.tensor, valid: tl.tensor) -> tl.tensor:
    """Load rows (TILE, BLOCK) of one head."""
    return tl.load(pointer + rows.to(tl.int64)[:, None] * stride + column[None, :], mask=valid, other=0.0)


@triton.jit  # type: ignore[untyped-decorator]
def _forward(
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    tiles: tl.tensor,
    tokens: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    out_token: tl.tensor,
    out_head: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    tile, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(tiles + tile * 3)
    end = tl.load(tiles + tile * 3 + 2)
    lane, column = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    row = first + lane
    is_row = row < end - 1  # the last token of a scale sees no later one
    inside = is_row[:, None] & (column < SIZE)[None, :]
    q_tile = _rows(q + head * q_head, q_token, row, column, inside)
    total = _rows(out + head * out_head, out_token, row, column, inside).to(tl.float32)
    high = tl.load(lse + head.to(tl.int64) * tokens + row, mask=is_row, other=0.0)
    weight = tl.full((ROWS,), 1.0, tl.float32)
    for start in range(first, end, ROWS):
        key = start + lane
        there = (key < end)[:, None] & (column < SIZE)[None, :]
        k_tile = _rows(k + head * k_head, k_token, key, column, there)
        scores = tl.dot(q_tile, tl.trans(k_tile))
        seen = (key[None, :] > row[:, None]) & (key < end)[None, :]
        scores = tl.where(seen, scores, -float("inf"))
        higher = tl.maximum(high, tl.max(scores, axis=1))
        part = tl.exp(scores - higher[:, None])
        shrink = tl.exp(high - higher)
        weight = weight * shrink + tl.sum(part, axis=1)
        v_tile = _rows(v + head * v_head, v_token, key, column, there)
        total = total * shrink[:, None] + tl.dot(part.to(v_tile.dtype), v_tile)
        high = higher
    at = out + head * out_head + row.to(tl.int64)[:, None] * out_token + column[None, :]
    tl.store(at, (total / weight[:, None]).to(out.dtype.element_ty), mask=inside)
    tl.store(lse + head.to(tl.int64) * tokens + row, high + tl.log(weight), mask=is_row)


@triton.jit  # type: ignore[untyped-decorator]
def _weights(
    q_tile: tl.tensor,
    k_tile: tl.tensor,
    grad_tile: tl.tensor,
    v_tile: tl.tensor,
    lse: tl.tensor,
    delta: tl.tensor,
    seen: tl.tensor,
) -> tl.tensor:
    """Attention weights of a tile of queries (rows) over one of keys (columns), and the gradient of its scores."""
    weights = tl.where(seen, tl.exp(tl.dot(q_tile, tl.trans(k_tile)) - lse[:, None]), 0.0)
    return weights, weights * (tl.dot(grad_tile, tl.trans(v_tile)) - delta[:, None])


@triton.jit  # type: ignore[untyped-decorator]
def _backward(
    grad: tl.tensor,
    q: tl.tensor,
    k: tl.tensor,
    v: tl.tensor,
    out: tl.tensor,
    lse: tl.tensor,
    dq: tl.tensor,
    dk: tl.tensor,
    dv: tl.tensor,
    tiles: tl.tensor,
    tokens: tl.tensor,
    grad_token: tl.tensor,
    grad_head: tl.tensor,
    q_token: tl.tensor,
    q_head: tl.tensor,
    k_token: tl.tensor,
    k_head: tl.tensor,
    v_token: tl.tensor,
    v_head: tl.tensor,
    out_token: tl.tensor,
    out_head: tl.tensor,
    dq_token: tl.tensor,
    dq_head: tl.tensor,
    dk_token: tl.tensor,
    dk_head: tl.tensor,
    dv_token: tl.tensor,
    dv_head: tl.tensor,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    tile, head = tl.program_id(0), tl.program_id(1)
    first = tl.load(tiles + tile * 3)
    begin = tl.load(tiles + tile * 3 + 1)
    end = tl.load(tiles + tile * 3 + 2)
    lane, column = tl.arange(0, ROWS), tl.arange(0, BLOCK)
    own = first + lane
    wide = (column < SIZE)[None, :]
    inside = (own < end)[:, None] & wide
    lse += head.to(tl.int64) * tokens
    k_tile = _rows(k + head * k_head, k_token, own, column, inside)
    v_tile = _rows(v + head * v_head, v_token, own, column, inside)
    # The tile as keys: earlier queries of the scale, this tile's among them.
    dk_tile = tl.zeros((ROWS, BLOCK), tl.float32)
    dv_tile = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(begin, first + ROWS, ROWS):
        row = start + lane
        there = (row < end)[:, None] & wide
        q_tile = _rows(q + head * q_head, q_token, row, column, there)
        grad_tile = _rows(grad + head * grad_head, grad_token, row, column, there)
        out_tile = _rows(out + head * out_head, out_token, row, column, there)
        delta = tl.sum(grad_tile.to(tl.float32) * out_tile.to(tl.float32), axis=1)
        row_lse = tl.load(lse + row, mask=row < end, other=0.0)
        seen = (own[None, :] > row[:, None]) & (own < end)[None, :]
        weights, d_scores = _weights(q_tile, k_tile, grad_tile, v_tile, row_lse, delta, seen)
        dv_tile += tl.dot(tl.trans(weights.to(grad_tile.dtype)), grad_tile)
        dk_tile += tl.dot(tl.trans(d_scores.to(q_tile.dtype)), q_tile)
    at = dk + head * dk_head + own.to(tl.int64)[:, None] * dk_token + column[None, :]
    tl.store(at, (dk_tile + tl.load(at, mask=inside, other=0.0).to(tl.float32)).to(dk.dtype.element_ty), mask=inside)
    at = dv + head * dv_head + own.to(tl.int64)[:, None] * dv_token + column[None, :]
    tl.store(at, (dv_tile + tl.load(at, mask=inside, other=0.0).to(tl.float32)).to(dv.dtype.element_ty), mask=inside)
    # The tile as queries: later keys of the scale, this tile's among them.
    q_tile = _rows(q + head * q_head, q_token, own, column, inside)
    grad_tile = _rows(grad + head * grad_head, grad_token, own, column, inside)
    out_tile = _rows(out + head * out_head, out_token, own, column, inside)
    delta = tl.sum(grad_tile.to(tl.float32) * out_tile.to(tl.float32), axis=1)
    own_lse = tl.load(lse + own, mask=own < end, other=0.0)
    dq_tile = tl.zeros((ROWS, BLOCK), tl.float32)
    for start in range(first, end, ROWS):
        key = start + lane
        there = (key < end)[:, None] & wide
        k_tile = _rows(k + head * k_head, k_token, key, column, there)
        v_tile = _rows(v + head * v_head, v_token, key, column, there)
        seen = (key[None, :] > own[:, None]) & (key < end)[None, :]
        _, d_scores = _weights(q_tile, k_tile, grad_tile, v_tile, own_lse, delta, seen)
        dq_tile += tl.dot(d_scores.to(k_tile.dtype), k_tile)
    at = dq + head * dq_head + own.to(tl.int64)[:, None] * dq_token + column[None, :]
    tl.store(at, (dq_tile + tl.load(at, mask=inside, other=0.0).to(tl.float32)).to(dq.dtype.element_ty), mask=inside)


def forward(q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse_HN: Tensor, tiles: Tensor) -> None:
    """Add the later tokens of each token's scale to `out` and `lse_HN`. All (N, H, D) but the logarithm, which is contiguous."""
    assert lse_HN.is_contiguous()
    size = q.shape[2]
    block = max(16, triton.next_power_of_2(size))
    strides = _strides(q, k, v, out)
    _forward[(len(tiles), q.shape[1])](
        q,
        k,
        v,
        out,
        lse_HN,
        tiles,
        q.shape[0],
        *strides,
        SIZE=size,
        BLOCK=block,
        ROWS=TILE,
        num_warps=_warps(block),
        num_stages=STAGES,
    )


def backward(
    saved: tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor], total: tuple[Tensor, Tensor, Tensor], tiles: Tensor
) -> None:
    """Add the gradients of these pairs to `total`: those of q, k and v.

    saved: gradient of the output, queries, keys, values, output, all (N, H, D), and the logarithm.
    """
    grad, q, k, v, out, lse_HN = saved
    assert lse_HN.is_contiguous()
    size = q.shape[2]
    block = max(16, triton.next_power_of_2(size))
    strides = _strides(grad, q, k, v, out, *total)
    _backward[(len(tiles), q.shape[1])](
        grad, q, k, v, out, lse_HN, *total, tiles, q.shape[0], *strides,
        SIZE=size, BLOCK=block, ROWS=TILE, num_warps=_warps(block), num_stages=STAGES,
    )  # fmt: skip


def _warps(block: int) -> int:
    """Return warps of a program; tiles of 128 columns need the registers of 8."""
    return 4 if block <= 64 else 8


def _strides(*tensors: Tensor) -> list[int]:
    """Return strides of tokens and heads; an element's stride is 1."""
    assert all(x.stride(2) == 1 for x in tensors)
    return [x.stride(axis) for x in tensors for axis in (0, 1)]
