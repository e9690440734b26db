"""The causal 3D convolution, the norm in front of it, and the history that a stream of chunks carries.

Legend: B clips, C channels, T frames, H rows, W columns, N = B*T single frames.

A convolution with temporal kernel k sees k - 1 earlier frames, and zeros before the first one. So a chunk together with its
`Stream` gives what the whole clip gives. Without gradients, faster paths compute the same: no copy for padding, and oneDNN's
convolution for a single clip on a CPU.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CausalConv(nn.Module):
    """Convolution (kernel_t, kernel, kernel) that never looks ahead; its weights are named `conv.*` as in the public state dict.

    stride_t 2 turns 1 + 2n frames into 1 + n. stride 2 in space pads one row and column at the end, as the public network does.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 3,
        *,
        kernel_t: int = 3,
        stride: int = 1,
        stride_t: int = 1,
        gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(inputs, outputs, (kernel_t, kernel, kernel))
        # Unit gain on the newest frame and zero on the older ones: training starts from an image network.
        nn.init.normal_(self.conv.weight, std=gain / (inputs * kernel * kernel) ** 0.5)
        with torch.no_grad():
            self.conv.weight[:, :, :-1] = 0
        assert self.conv.bias is not None
        nn.init.zeros_(self.conv.bias)
        self.kernel, self.kernel_t, self.stride, self.stride_t = kernel, kernel_t, stride, stride_t
        self.slot = ""

    def forward(self, x_BCTHW: Tensor, stream: Stream | None = None, norm: FrameNorm | None = None) -> Tensor:
        """Return the frames that are complete, in a stream perhaps none (T = 0). `norm` is applied to the input first."""
        older = self.kernel_t - 1
        old = stream.history.get(self.slot) if stream is not None else None
        # Zeros in front of a lone first frame add nothing, so only the last temporal slice of the kernel acts.
        lone = older > 0 and x_BCTHW.shape[2] == 1 and old is None
        if older == 0 or (lone and stream is None):
            return self._convolve(x_BCTHW if norm is None else norm(x_BCTHW), lone)
        seen = _with_history(x_BCTHW, old, older, norm)
        made = max(0, (seen.shape[2] - self.kernel_t) // self.stride_t + 1)
        if stream is not None:
            stream.history[self.slot] = seen[:, :, made * self.stride_t :].clone()
        return self._convolve(seen[:, :, older:] if lone else seen if made else seen[:, :, :0], lone)

    def _convolve(self, x_BCTHW: Tensor, lone: bool) -> Tensor:
        if x_BCTHW.shape[2] == 0:
            rows, columns = (side // self.stride for side in x_BCTHW.shape[3:])
            return x_BCTHW.new_zeros((x_BCTHW.shape[0], self.conv.out_channels, 0, rows, columns))
        weight, bias = self.conv.weight[:, :, -1:] if lone else self.conv.weight, self.conv.bias
        side = self.kernel // 2
        if self.stride == 2:
            x_BCTHW, side = F.pad(x_BCTHW, (0, 1, 0, 1)), 0
        stride, padding = (self.stride_t, self.stride, self.stride), (0, side, side)
        alone = x_BCTHW.shape[0] == 1 and not torch.is_grad_enabled() and not torch.compiler.is_compiling()
        if alone and weight.dtype == x_BCTHW.dtype and onednn_computes(x_BCTHW.device, x_BCTHW.dtype):
            # For one small clip torch would choose a loop that is several times slower.
            out: Tensor = torch.ops.aten.mkldnn_convolution(x_BCTHW, weight, bias, padding, stride, (1, 1, 1), 1)
            return out
        return F.conv3d(x_BCTHW, weight, bias, stride, padding)


def _with_history(x_BCTHW: Tensor, old: Tensor | None, older: int, norm: FrameNorm | None) -> Tensor:
    """Return the history (or `older` zero frames) followed by the normalised input; without gradients, in a single write."""
    if torch.is_grad_enabled() or norm is None or x_BCTHW.shape[2] == 0:
        x_BCTHW = x_BCTHW if norm is None else norm(x_BCTHW)
        return F.pad(x_BCTHW, (0, 0, 0, 0, older, 0)) if old is None else torch.cat((old, x_BCTHW), dim=2)
    y_BCTHW = clips_of(norm.norm(frames_of(x_BCTHW)), x_BCTHW.shape[0])
    held = older if old is None else old.shape[2]
    shape = (*y_BCTHW.shape[:2], held + y_BCTHW.shape[2], *y_BCTHW.shape[3:])
    seen = torch.empty(shape, dtype=y_BCTHW.dtype, device=y_BCTHW.device, memory_format=torch.channels_last_3d)
    if old is None:
        seen[:, :, :held].zero_()
    else:
        seen[:, :, :held] = old
    if norm.act:
        torch.ops.aten.silu.out(y_BCTHW, out=seen[:, :, held:])
    else:
        seen[:, :, held:] = y_BCTHW
    return seen


class FrameNorm(nn.Module):
    """GroupNorm over one frame at a time (eps 1e-6), followed by SiLU when `act`."""

    def __init__(self, channels: int, groups: int, *, act: bool = True) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(group_count(channels, groups), channels, eps=1e-6)
        self.act = act

    def forward(self, x_BCTHW: Tensor) -> Tensor:
        """Normalise; statistics are in at least float32."""
        if x_BCTHW.shape[2] == 0:
            return x_BCTHW
        y_NCHW = self.norm(frames_of(x_BCTHW))
        if self.act:
            y_NCHW = F.silu(y_NCHW)
        return clips_of(y_NCHW, x_BCTHW.shape[0])


class Stream:
    """The last input frames of every temporal convolution, by its `slot`. No tensor is changed in place, so copies are cheap."""

    def __init__(self, history: dict[str, Tensor] | None = None) -> None:
        self.history: dict[str, Tensor] = dict(history or {})

    def copy(self) -> Stream:
        """Return a stream that can advance without changing this one."""
        return Stream(self.history)


def name_slots(network: nn.Module) -> None:
    """Name each convolution's history in a `Stream`. Encoder and decoder call this once, when they are built."""
    for name, module in network.named_modules():
        if isinstance(module, CausalConv):
            module.slot = name


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


def onednn_computes(device: torch.device, dtype: torch.dtype) -> bool:
    """Return whether oneDNN's convolution supports this dtype on this device: bfloat16 needs a CPU with AVX512 or better."""
    if device.type != "cpu":
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported()))
