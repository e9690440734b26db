"""Triton kernels of the codec on CUDA: exact group norm with SiLU, written behind a history, and the sum of a residual block.

In:  activations (frames, pixels, channels), which is what channels_last_3d memory holds, in bfloat16 or float32; no gradients.
Out: the same layout. Statistics are float32 and have no cancellation; no sum depends on timing or on other frames of a batch.

Everything that a convolution needs beside itself reads and writes each activation once: torch's group norm would copy
channels_last memory to contiguous memory and back, and its convolution adds the bias in a pass of its own.

This module imports triton, which torch for CUDA brings along; it is imported only where a CUDA tensor is computed.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

ELEMENTS = 4096
"""Elements of one block of rows, at 4 warps 32 a thread."""
STEPS = 32
"""Blocks of rows over which one program sums."""


@triton.jit  # type: ignore[untyped-decorator]
def _partial_moments(
    x: tl.tensor,
    bias: tl.tensor,
    partial: tl.tensor,
    pixels: tl.tensor,
    tiles: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    BIASED: tl.constexpr,
) -> None:
    """Mean and sum of squared distances from it, by channel, over SPAN pixels of a frame; shifted by the first of them."""
    frame = tl.program_id(1).to(tl.int64)
    tile = tl.program_id(0)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    start = tile * SPAN
    stop = tl.minimum(start + SPAN, pixels)
    base = x + frame * pixels * CHANNELS
    shift = tl.load(base + start.to(tl.int64) * CHANNELS + channel, mask=inside, other=0.0).to(tl.float32)
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    square = tl.zeros((ROWS, BLOCK), tl.float32)
    for row in range(start, stop, ROWS):
        rows = row + tl.arange(0, ROWS)
        valid = (rows < stop)[:, None] & inside[None, :]
        value = tl.load(base + rows.to(tl.int64)[:, None] * CHANNELS + channel[None, :], mask=valid, other=0.0).to(tl.float32)
        away = tl.where(valid, value - shift[None, :], 0.0)
        total += away
        square += away * away
    count = (stop - start).to(tl.float32)
    mean = tl.sum(total, axis=0) / count
    moment = tl.sum(square, axis=0) - count * mean * mean
    mean += shift
    if BIASED:
        mean += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)
    out = partial + (frame * tiles + tile) * 2 * CHANNELS + channel
    tl.store(out, mean, mask=inside)
    tl.store(out + CHANNELS, moment, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _scale_and_offset(
    partial: tl.tensor,
    bias: tl.tensor,
    gain: tl.tensor,
    offset: tl.tensor,
    affine: tl.tensor,
    pixels: tl.tensor,
    tiles: tl.tensor,
    epsilon: tl.tensor,
    CHANNELS: tl.constexpr,
    WIDE: tl.constexpr,
    BLOCK: tl.constexpr,
    AT_ONCE: tl.constexpr,
    SPAN: tl.constexpr,
    BIASED: tl.constexpr,
) -> None:
    """Join the moments of a frame's group of WIDE channels to the factor and summand of each of its channels."""
    group = tl.program_id(0)
    frame = tl.program_id(1).to(tl.int64)
    lane = tl.arange(0, BLOCK)
    inside = lane < WIDE
    channel = group * WIDE + lane
    base = partial + frame * tiles * 2 * CHANNELS
    elements = tl.cast(pixels, tl.float32) * WIDE
    total = tl.zeros((AT_ONCE, BLOCK), tl.float32)
    for first in range(0, tiles, AT_ONCE):
        tile = first + tl.arange(0, AT_ONCE)
        valid = (tile < tiles)[:, None] & inside[None, :]
        count = tl.minimum(pixels - tile * SPAN, SPAN).to(tl.float32)
        mean = tl.load(base + tile[:, None] * 2 * CHANNELS + channel[None, :], mask=valid, other=0.0)
        total += tl.where(valid, mean * count[:, None], 0.0)
    middle = tl.sum(tl.sum(total, axis=1), axis=0) / elements
    square = tl.zeros((AT_ONCE, BLOCK), tl.float32)
    for first in range(0, tiles, AT_ONCE):
        tile = first + tl.arange(0, AT_ONCE)
        valid = (tile < tiles)[:, None] & inside[None, :]
        count = tl.minimum(pixels - tile * SPAN, SPAN).to(tl.float32)
        at = base + tile[:, None] * 2 * CHANNELS + channel[None, :]
        away = tl.load(at, mask=valid, other=0.0) - middle
        moment = tl.load(at + CHANNELS, mask=valid, other=0.0)
        square += tl.where(valid, moment + away * away * count[:, None], 0.0)
    variance = tl.sum(tl.sum(square, axis=1), axis=0) / elements
    factor = tl.load(gain + channel, mask=inside, other=0.0).to(tl.float32) / tl.sqrt_rn(variance + epsilon)
    summand = tl.load(offset + channel, mask=inside, other=0.0).to(tl.float32) - middle * factor
    if BIASED:
        summand += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32) * factor
    out = affine + frame * 2 * CHANNELS + channel
    tl.store(out, factor, mask=inside)
    tl.store(out + CHANNELS, summand, mask=inside)


@triton.jit  # type: ignore[untyped-decorator]
def _scale_and_activate(
    x: tl.tensor,
    affine: tl.tensor,
    out: tl.tensor,
    pixels: tl.tensor,
    frames: tl.tensor,
    held: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    SPAN: tl.constexpr,
    ACTIVATE: tl.constexpr,
) -> None:
    """Write factor * x + summand, through SiLU, behind the `held` frames at the beginning of each clip."""
    frame = tl.program_id(1).to(tl.int64)
    start = tl.program_id(0) * SPAN
    stop = tl.minimum(start + SPAN, pixels)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    factor = tl.load(affine + frame * 2 * CHANNELS + channel, mask=inside, other=0.0)
    summand = tl.load(affine + frame * 2 * CHANNELS + CHANNELS + channel, mask=inside, other=0.0)
    base = x + frame * pixels * CHANNELS
    behind = out + (frame + (frame // frames + 1) * held) * pixels * CHANNELS
    for row in range(start, stop, ROWS):
        rows = row + tl.arange(0, ROWS)
        valid = (rows < stop)[:, None] & inside[None, :]
        at = rows.to(tl.int64)[:, None] * CHANNELS + channel[None, :]
        value = tl.load(base + at, mask=valid, other=0.0).to(tl.float32) * factor[None, :] + summand[None, :]
        if ACTIVATE:
            value = value * tl.sigmoid(value)
        tl.store(behind + at, value.to(out.dtype.element_ty), mask=valid)


@triton.jit  # type: ignore[untyped-decorator]
def _add_residual(
    h: tl.tensor,
    residual: tl.tensor,
    bias: tl.tensor,
    lines: tl.tensor,
    CHANNELS: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
) -> None:
    """Add a bias by channel and the residual to h, in place."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    channel = tl.arange(0, BLOCK)
    inside = channel < CHANNELS
    valid = (rows < lines)[:, None] & inside[None, :]
    at = rows[:, None] * CHANNELS + channel[None, :]
    value = tl.load(h + at, mask=valid, other=0.0).to(tl.float32) + tl.load(residual + at, mask=valid, other=0.0).to(tl.float32)
    value += tl.load(bias + channel, mask=inside, other=0.0).to(tl.float32)[None, :]
    tl.store(h + at, value.to(h.dtype.element_ty), mask=valid)


def group_norm_behind(
    x_BCTHW: Tensor,
    seen_BCTHW: Tensor,
    groups: int,
    affine: tuple[Tensor, Tensor, float],
    bias_C: Tensor | None = None,
    *,
    activate: bool = True,
) -> None:
    """Write the group norm of every frame of x + bias, through SiLU, into the last frames of `seen`.

    Both are in channels_last_3d memory. affine: weight and bias by channel, and epsilon.
    """
    clips, channels, frames, rows, columns = x_BCTHW.shape
    pixels, held = rows * columns, seen_BCTHW.shape[2] - frames
    block = triton.next_power_of_2(channels)
    lines = max(1, ELEMENTS // block)
    span = lines * STEPS
    tiles = triton.cdiv(pixels, span)
    total = clips * frames
    partial = torch.empty((total, tiles, 2, channels), dtype=torch.float32, device=x_BCTHW.device)
    joined = torch.empty((total, 2, channels), dtype=torch.float32, device=x_BCTHW.device)
    weight, offset, epsilon = affine
    before = weight if bias_C is None else bias_C
    wide = channels // groups
    sizes = {"CHANNELS": channels, "BLOCK": block, "ROWS": lines, "SPAN": span}
    _partial_moments[(tiles, total)](x_BCTHW, before, partial, pixels, tiles, **sizes, BIASED=bias_C is not None)
    lanes = triton.next_power_of_2(wide)
    _scale_and_offset[(groups, total)](
        partial,
        before,
        weight,
        offset,
        joined,
        pixels,
        tiles,
        epsilon,
        CHANNELS=channels,
        WIDE=wide,
        BLOCK=lanes,
        AT_ONCE=max(1, 256 // lanes),
        SPAN=span,
        BIASED=bias_C is not None,
    )
    _scale_and_activate[(tiles, total)](x_BCTHW, joined, seen_BCTHW, pixels, frames, held, **sizes, ACTIVATE=activate)


def add_residual(h_BCTHW: Tensor, residual_BCTHW: Tensor, bias_C: Tensor) -> Tensor:
    """Add the residual and the bias of each channel to h in place and return it; both are in channels_last_3d memory."""
    channels = h_BCTHW.shape[1]
    block, lines = triton.next_power_of_2(channels), h_BCTHW.numel() // channels
    rows = max(1, ELEMENTS // block)
    _add_residual[(triton.cdiv(lines, rows),)](
        h_BCTHW, residual_BCTHW, bias_C, lines, CHANNELS=channels, BLOCK=block, ROWS=rows
    )
    return h_BCTHW
