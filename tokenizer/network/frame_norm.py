"""Group norm over one frame at a time, with SiLU, exact whatever the mean is, written behind the history of a convolution.

In:  x_BCTHW, best in channels_last_3d memory.
Out: frames (B,C,held+T,H,W) in channels_last_3d memory, of which the first `held` are zero or the caller's history.

Legend: B clips, C channels, T frames, H rows, W columns, n frames of a clip, P = H*W pixels, G groups.

torch's own kernel for channels_last memory on CPUs takes the variance as E[x^2] - E[x]^2: at a mean of 30 its result is off by
2e-2, at 0 by 8e-6. Here the mean is taken first and the variance from it, both by torch's cascade sums, whose order depends on
neither other frames nor threads. On CUDA without gradients the kernels of `cuda_kernels.py` do the same.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

Doubles = npt.NDArray[np.float64]
SMALL = 2**13
"""Elements of a frame up to which it is copied to contiguous memory, where torch's kernel is exact: fewer calls."""
BLOCK = 2**18
"""Elements that are computed at once on a CPU: intermediate results stay in its cache."""


class FrameNorm(nn.Module):
    """GroupNorm over one frame at a time (eps 1e-6), followed by SiLU when `act`."""

    def __init__(self, channels: int, groups: int, *, act: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(group_count(channels, groups), channels, eps=1e-6)
        self.act = act

    def forward(self, x_BCTHW: Tensor, held: int = 0, bias_C: Tensor | None = None) -> Tensor:
        """Normalise x + bias behind `held` zero frames; statistics are in at least float32. `bias_C`: without gradients only."""
        if torch.is_grad_enabled():
            assert bias_C is None
            return self._with_gradients(x_BCTHW, held)
        seen = torch.empty(
            (*x_BCTHW.shape[:2], held + x_BCTHW.shape[2], *x_BCTHW.shape[3:]),
            dtype=x_BCTHW.dtype,
            device=x_BCTHW.device,
            memory_format=torch.channels_last_3d,
        )
        seen[:, :, :held].zero_()
        self.behind(x_BCTHW, seen, bias_C)
        return seen

    @torch.no_grad()
    def behind(self, x_BCTHW: Tensor, seen_BCTHW: Tensor, bias_C: Tensor | None = None) -> None:
        """Write the normalised x + bias into the last frames of `seen`, which is in channels_last_3d memory."""
        if x_BCTHW.numel() == 0:
            return
        x_BCTHW = x_BCTHW.contiguous(memory_format=torch.channels_last_3d)
        weight, offset, groups = self.norm.weight, self.norm.bias, self.norm.num_groups
        if x_BCTHW.device.type == "cuda":
            from tokenizer.network import cuda_kernels

            affine = (weight, offset, self.norm.eps)
            cuda_kernels.group_norm_behind(x_BCTHW, seen_BCTHW, groups, affine, bias_C, activate=self.act)
            return
        if bias_C is not None:
            x_BCTHW = x_BCTHW + bias_C.view(1, -1, 1, 1, 1)
        if _is_small(x_BCTHW):
            seen_BCTHW[:, :, -x_BCTHW.shape[2] :] = clips_of(self._contiguous(x_BCTHW), x_BCTHW.shape[0])
            return
        _normalise(x_BCTHW, seen_BCTHW, weight, offset, groups, self.norm.eps, activate=self.act)

    def _with_gradients(self, x_BCTHW: Tensor, held: int) -> Tensor:
        if x_BCTHW.device.type == "cpu" and x_BCTHW.numel() and not _is_small(x_BCTHW):
            out: Tensor = _ExactNorm.apply(  # type: ignore[no-untyped-call]
                x_BCTHW.contiguous(memory_format=torch.channels_last_3d),
                self.norm.weight,
                self.norm.bias,
                (self.norm.num_groups, self.norm.eps, self.act, held),
            )
            return out
        if x_BCTHW.shape[2]:
            x_BCTHW = clips_of(self._contiguous(x_BCTHW).contiguous(memory_format=torch.channels_last), x_BCTHW.shape[0])
        return F.pad(x_BCTHW, (0, 0, 0, 0, held, 0)) if held else x_BCTHW

    def _contiguous(self, x_BCTHW: Tensor) -> Tensor:
        y_NCHW: Tensor = self.norm(frames_of(x_BCTHW).contiguous())
        return F.silu(y_NCHW) if self.act else y_NCHW


class _ExactNorm(torch.autograd.Function):
    """The same with gradients in closed form; of the forward pass only input and statistics are kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, offset: Tensor, kind: tuple[int, float, bool, int]) -> Tensor:
        groups, epsilon, activate, held = kind
        seen = torch.empty((*x.shape[:2], held + x.shape[2], *x.shape[3:]), dtype=x.dtype, memory_format=torch.channels_last_3d)
        seen[:, :, :held].zero_()
        mean, scale = _normalise(x, seen, weight, offset, groups, epsilon, activate=activate)
        ctx.save_for_backward(x, weight, offset, mean, scale)
        ctx.kind = kind
        return seen

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Give the gradients of x, weight and bias.

        With u = (x - mean) * scale, z = weight * u + bias, y = silu(z): gz = gy silu'(z), and by group of a frame
        gx = scale * (weight * gz - mean(weight * gz) - u * mean(weight * gz * u)).
        """
        x, weight, offset, mean, scale = ctx.saved_tensors
        groups, _, activate, held = ctx.kind
        dtype = _arithmetic(x.dtype)
        whole = grads[0].contiguous(memory_format=torch.channels_last_3d)
        gx = torch.empty(x.shape, dtype=dtype, memory_format=torch.channels_last_3d)
        x_BTPC, gy_BTPC, gx_BTPC = _rows(x), _rows(whole)[:, held:], _rows(gx)
        gain, offset = weight.to(dtype).numpy(), offset.to(dtype)
        gw, gb = np.zeros(len(gain)), np.zeros(len(gain))
        for clip, frames in _chunks(x_BTPC):
            x_tPC, gz, gx_tPC = x_BTPC[clip, frames].to(dtype), gy_BTPC[clip, frames].to(dtype), gx_BTPC[clip, frames]
            middle, wide = mean[clip, frames], scale[clip, frames].numpy()
            factor = torch.from_numpy(wide * gain)
            away = x_tPC - middle
            if activate:
                gz = torch.ops.aten.silu_backward(gz, torch.addcmul(offset, away, factor))
            sums = _double(gz.sum(1, keepdim=True))
            products = _double(torch.mul(gz, away).sum(1, keepdim=True)) * wide
            level = -wide * _of_groups(sums * gain, groups, x_tPC.shape[1])
            slope = -wide * wide * _of_groups(products * gain, groups, x_tPC.shape[1])
            torch.addcmul(torch.from_numpy(level).to(dtype), gz, factor, out=gx_tPC)
            gx_tPC.addcmul_(away, torch.from_numpy(slope).to(dtype))
            gw += products.sum((0, 1))
            gb += sums.sum((0, 1))
        return gx.to(x.dtype), torch.from_numpy(gw).to(weight.dtype), torch.from_numpy(gb).to(offset.dtype), None


def _normalise(
    x: Tensor, seen: Tensor, weight: Tensor, offset: Tensor, groups: int, epsilon: float, *, activate: bool
) -> tuple[Tensor, Tensor]:
    """Write the norm of x into the last frames of `seen`; return mean and 1 / deviation of each channel's group (B,T,1,C)."""
    dtype = _arithmetic(x.dtype)
    x_BTPC, out_BTPC = _rows(x), _rows(seen)[:, seen.shape[2] - x.shape[2] :]
    gain, base = weight.to(dtype).numpy(), offset.to(dtype).numpy()
    mean, scale = x.new_empty((2, *x_BTPC.shape[:2], 1, len(gain)), dtype=dtype)
    for clip, frames in _chunks(x_BTPC):
        x_tPC, out_tPC = x_BTPC[clip, frames], out_BTPC[clip, frames]
        cuts = _cuts(x_tPC)
        middle, wide = _moments(x_tPC, cuts, groups, epsilon)
        mean[clip, frames], scale[clip, frames] = torch.from_numpy(middle), torch.from_numpy(wide)
        factor = torch.from_numpy(wide * gain).to(dtype)
        summand = torch.from_numpy(base - middle * wide * gain).to(dtype)
        for cut in cuts:
            out, x_tpC = out_tPC[:, cut], x_tPC[:, cut]
            if out.dtype == dtype:
                torch.addcmul(summand, x_tpC, factor, out=out)
                if activate:
                    torch.ops.aten.silu_(out)
            else:
                y = torch.addcmul(summand, x_tpC.to(dtype), factor)
                out.copy_(torch.ops.aten.silu_(y) if activate else y)
    return mean, scale


def _moments(x_tPC: Tensor, cuts: list[slice], groups: int, epsilon: float) -> tuple[Doubles, Doubles]:
    """Mean and 1 / sqrt(variance + eps) of each channel's group (t,1,C).

    The variance is taken from distances to the mean of the first cut, by channel: of a frame that is one cut, from the mean
    itself. With n cuts the variance is at least 1/n of what is subtracted, whatever the values are, so nothing cancels.
    """
    pixels = x_tPC.shape[1]
    total, square = np.zeros((2, x_tPC.shape[0], 1, x_tPC.shape[2]))
    shift: Tensor | None = None
    for cut in cuts:
        x_tpC = x_tPC[:, cut].to(_arithmetic(x_tPC.dtype))
        sums = x_tpC.sum(1, keepdim=True)
        if shift is None:
            shift = sums / x_tpC.shape[1]
        away = torch.ops.aten.mse_loss(x_tpC, shift.expand_as(x_tpC), 0)
        total, square = total + _double(sums), square + _double(away.sum(1, keepdim=True))
    assert shift is not None
    means = total / pixels
    variances = square / pixels - (means - _double(shift)) ** 2
    mean = _of_groups(means, groups)
    return mean, 1 / np.sqrt(_of_groups(variances + (means - mean) ** 2, groups) + epsilon)


def _of_groups(of_channels: Doubles, groups: int, pixels: int = 1) -> Doubles:
    """Give each channel the mean over its group, of values that are sums over `pixels`."""
    channels = of_channels.shape[-1]
    wide = channels // groups
    if wide == 1:
        return of_channels / pixels
    joined = of_channels.reshape(*of_channels.shape[:-1], groups, wide).sum(-1) / (pixels * wide)
    return np.repeat(joined, wide, axis=-1)


def _double(sums: Tensor) -> Doubles:
    return sums.numpy().astype(np.float64)


def _is_small(x_BCTHW: Tensor) -> bool:
    return x_BCTHW.shape[1] * x_BCTHW.shape[3] * x_BCTHW.shape[4] <= SMALL


def _chunks(x_BTPC: Tensor) -> Iterator[tuple[int, slice]]:
    """Frames of a clip that are computed together."""
    clips, frames = x_BTPC.shape[:2]
    some = max(1, BLOCK // x_BTPC[0, 0].numel())
    for clip in range(clips):
        for frame in range(0, frames, some):
            yield clip, slice(frame, frame + some)


def _cuts(x_tPC: Tensor) -> list[slice]:
    """Pixels of a frame that are computed together; how a frame is cut depends on its own size alone."""
    lines = max(1, BLOCK // x_tPC.shape[2])
    return [slice(line, line + lines) for line in range(0, x_tPC.shape[1], lines)]


def _rows(x_BCTHW: Tensor) -> Tensor:
    """View channels_last_3d memory as (B,T,P,C)."""
    clips, channels, frames, rows, columns = x_BCTHW.shape
    return x_BCTHW.permute(0, 2, 3, 4, 1).view(clips, frames, rows * columns, channels)


def _arithmetic(dtype: torch.dtype) -> torch.dtype:
    return dtype if dtype in (torch.float32, torch.float64) else torch.float32


def frames_of(x_BCTHW: Tensor) -> Tensor:
    """View clips (B,C,T,H,W) in channels_last_3d memory as frames (B*T,C,H,W) in channels_last memory, without a copy."""
    return x_BCTHW.transpose(1, 2).flatten(0, 1)


def clips_of(x_NCHW: Tensor, clips: int) -> Tensor:
    """Inverse of `frames_of` for `clips` clips."""
    x_BTCHW: Tensor = x_NCHW.unflatten(0, (clips, x_NCHW.shape[0] // clips))
    return x_BTCHW.transpose(1, 2)


def group_count(channels: int, groups: int) -> int:
    """Return the largest divisor of `channels` that is at most `groups`."""
    return next(g for g in range(min(groups, channels), 0, -1) if channels % g == 0)
