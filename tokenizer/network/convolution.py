"""How a 3D convolution is computed: on CPUs always by oneDNN or as a matrix product, forward and backward, by a rule.

In:  x_BCTHW in channels_last_3d memory, weight and bias, stride and padding by axis.
Out: y_BCTHW of the same layout; its gradients.

torch takes a loop over clips (`slow_conv3d`) in place of oneDNN for one small clip in float32, and for kernels of 1 x 1 x 1: the
loop is 4 to 8 times slower, backward as well. Here, on CPUs:

    product  1 x 1 x 1, stride 1: a matrix product over channels
    2d       temporal kernel 1: oneDNN's 2D convolution, frames as batch
    3d       everything else: oneDNN's 3D convolution; the sum of 2D convolutions over frames is at best as fast

A dtype that the CPU has no instructions for is computed in float32 and rounded at the end. float64, which only tests use, and
other devices are torch's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

LOOP_BELOW = 20480
"""torch leaves one clip in float32 to its loop up to this product of its first four sizes."""
CHAIN = 32
"""Channels of a frame whose products are added in one sum, in the 2D form and float32: images and first frames."""
Form = Literal["product", "2d", "3d", "torch"]


def form(device: torch.device, dtype: torch.dtype, kernel: Sequence[int], stride: Sequence[int]) -> Form:
    """Return how a convolution is computed. It depends on nothing else, so neither do the bytes of a shard."""
    if device.type != "cpu" or dtype == torch.float64:
        return "torch"
    if tuple(kernel) == (1, 1, 1) and tuple(stride) == (1, 1, 1):
        return "product"
    return "2d" if kernel[0] == 1 and stride[0] == 1 else "3d"


def convolve(x_BCTHW: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Convolve clips of at least one frame; the temporal padding is 0. Under autocast on a CPU, in its dtype."""
    chosen = form(x_BCTHW.device, x_BCTHW.dtype, weight.shape[2:], stride)
    if chosen == "torch":
        return F.conv3d(x_BCTHW, weight, bias, tuple(stride), tuple(padding))
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x_BCTHW.dtype
    inside = dtype if onednn_computes(x_BCTHW.device, dtype) else torch.float32
    x_BCTHW, weight = x_BCTHW.to(dtype).to(inside), weight.to(dtype).to(inside)
    bias = None if bias is None else bias.to(dtype).to(inside)
    with torch.autocast("cpu", enabled=False):
        if chosen == "product":
            y_BTHWC = F.linear(x_BCTHW.permute(0, 2, 3, 4, 1), weight[:, :, 0, 0, 0], bias)
            y_BCTHW: Tensor = y_BTHWC.permute(0, 4, 1, 2, 3).to(dtype)
            return y_BCTHW
        if chosen == "2d":
            clips = x_BCTHW.shape[0]
            y_NCHW = _convolve(x_BCTHW.transpose(1, 2).flatten(0, 1), weight[:, :, 0], bias, stride[1:], padding[1:])
            y_BTCHW: Tensor = y_NCHW.unflatten(0, (clips, -1)).to(dtype)
            return y_BTCHW.transpose(1, 2)
        return _convolve(x_BCTHW, weight, bias, stride, padding).to(dtype)


def onednn_computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN's convolution supports this dtype on this device: bfloat16 needs a CPU with AVX512 or better."""
    if device.type != "cpu":
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    # Both, since torch cannot tell the layout of one clip of one frame from the strides of its memory.
    x, weight = _channels_last(x), _channels_last(weight)
    if torch.is_grad_enabled() and any(each is not None and each.requires_grad for each in (x, weight, bias)):
        out: Tensor = _OneDNN.apply(x, weight, bias, tuple(stride), tuple(padding))  # type: ignore[no-untyped-call]
        return out
    return _forward(x, weight, bias, stride, padding)


def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    if x.ndim == 4 and x.dtype == torch.float32 and x.shape[1] >= 2 * CHAIN:
        # oneDNN adds all products of an output one after another; the error of several shorter sums is smaller.
        pieces = zip(x.split(CHAIN, 1), weight.split(CHAIN, 1), strict=True)
        first, *others = (_onednn(_channels_last(part), _channels_last(of), None, stride, padding) for part, of in pieces)
        for other in others:
            first += other
        return first if bias is None else first.add_(bias.view(1, -1, 1, 1))
    return _onednn(x, weight, bias, stride, padding)


def _onednn(x: Tensor, weight: Tensor, bias: Tensor | None, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    out: Tensor = torch.ops.aten.mkldnn_convolution(x, weight, bias, padding, stride, (1,) * len(stride), 1)
    return out


class _OneDNN(torch.autograd.Function):
    """oneDNN's convolution over 2 or 3 axes, with a backward pass that stays with oneDNN."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple[int, ...], padding: tuple[int, ...]
    ) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.stride, ctx.padding, ctx.biased = stride, padding, bias is not None
        return _forward(x, weight, bias, stride, padding)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        g = _channels_last(grads[0])
        wanted = (ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.biased and ctx.needs_input_grad[2])
        if x.dtype != torch.float32 or len(x) > 1 or math.prod(x.shape[:4]) > LOOP_BELOW:
            return *_gradients(g, x, weight, ctx.stride, ctx.padding, wanted), None, None
        gx = _input_gradient(g, x, weight, ctx.stride, ctx.padding) if wanted[0] else None
        gw = gb = None
        if wanted[1]:
            halves = _halves(g, x, weight.shape[-2], ctx.stride, ctx.padding)
            without = (*ctx.padding[:-2], 0, ctx.padding[-1])
            _, gw, gb = _gradients(*halves, weight, ctx.stride, without, (False, True, wanted[2]))
        elif wanted[2]:
            gb = g.sum([0, *range(2, g.ndim)])
        return gx, gw, gb, None, None


def _gradients(
    g: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int], wanted: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients of input, weight and bias, as torch computes them: by oneDNN for several clips, or one that is large."""
    axes = len(stride)
    sizes = [weight.shape[0]]
    gx, gw, gb = torch.ops.aten.convolution_backward(
        g, x, weight, sizes, stride, padding, (1,) * axes, False, (0,) * axes, 1, wanted
    )
    return gx, gw, gb


def _input_gradient(g: Tensor, x: Tensor, weight: Tensor, stride: Sequence[int], padding: Sequence[int]) -> Tensor:
    """Gradient of the input: oneDNN's transposed convolution, forward."""
    left = [
        side - ((made - 1) * step + kernel - 2 * pad)
        for side, made, step, kernel, pad in zip(x.shape[2:], g.shape[2:], stride, weight.shape[2:], padding)
    ]
    out: Tensor = torch.ops.mkldnn._convolution_transpose_pointwise(
        g, weight, None, padding, left, stride, (1,) * len(stride), 1, "none", [], ""
    )
    return out


def _halves(g: Tensor, x: Tensor, kernel: int, stride: Sequence[int], padding: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Cut one clip into two of half its rows, for which torch takes oneDNN: gradient of the output, and input with its borders.

    A sum over all rows is the same for both; a row that is missing at the end is zero.
    """
    step, pad = stride[-2], padding[-2]
    rows = -(-g.shape[-2] // 2)
    needed = (rows - 1) * step + kernel
    return _cut(g, rows, 0, rows), _cut(x, needed, -pad, rows * step)


def _cut(x: Tensor, rows: int, begin: int, further: int) -> Tensor:
    """Two pieces of `rows` rows of one clip, which begin at row `begin` and `further` rows later; outside of it are zeros."""
    memory = torch.channels_last_3d if x.ndim == 5 else torch.channels_last
    out = torch.empty((2, *x.shape[1:-2], rows, x.shape[-1]), dtype=x.dtype, memory_format=memory)
    for half, first in enumerate((begin, begin + further)):
        above = max(0, -first)
        source = x[0, ..., max(0, first) : max(0, first + rows), :]
        below = above + source.shape[-2]
        out[half, ..., above:below, :] = source
        out[half, ..., :above, :].zero_()
        out[half, ..., below:, :].zero_()
    return out


def _channels_last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last_3d if x.ndim == 5 else torch.channels_last)
