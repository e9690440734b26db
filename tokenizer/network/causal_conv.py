"""The causal 3D convolution and the history that a stream of chunks carries.

Legend: B clips, C channels, T frames, H rows, W columns.

A convolution with temporal kernel k sees k - 1 earlier frames, and zeros before the first one. So a chunk together with its
`Stream` gives what the whole clip gives. The norm in front of it writes behind that history, so padding costs no copy.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokenizer.network.convolution import convolve
from tokenizer.network.frame_norm import FrameNorm


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

    def forward(
        self,
        x_BCTHW: Tensor,
        stream: Stream | None = None,
        norm: FrameNorm | None = None,
        *,
        before_C: Tensor | None = None,
        biased: bool = True,
    ) -> Tensor:
        """Return the frames that are complete, in a stream perhaps none (T = 0). `norm` is applied to the input first.

        before_C: what is to be added to the input's channels before the norm. biased: whether to add the convolution's own bias,
        or leave that to the caller. Both are for passes without gradients.
        """
        older = self.kernel_t - 1
        old = stream.history.get(self.slot) if stream is not None else None
        # Zeros in front of a lone first frame add nothing, so only the last temporal slice of the kernel acts.
        lone = older > 0 and x_BCTHW.shape[2] == 1 and old is None
        if older == 0 or (lone and stream is None):
            return self._convolve(x_BCTHW if norm is None else norm(x_BCTHW, 0, before_C), lone, biased)
        seen = _with_history(x_BCTHW, old, older, norm, before_C)
        made = max(0, (seen.shape[2] - self.kernel_t) // self.stride_t + 1)
        if stream is not None:
            stream.history[self.slot] = seen[:, :, made * self.stride_t :].clone()
        return self._convolve(seen[:, :, older:] if lone else seen if made else seen[:, :, :0], lone, biased)

    def _convolve(self, x_BCTHW: Tensor, lone: bool, biased: bool) -> Tensor:
        if x_BCTHW.shape[2] == 0:
            rows, columns = (side // self.stride for side in x_BCTHW.shape[3:])
            return x_BCTHW.new_zeros((x_BCTHW.shape[0], self.conv.out_channels, 0, rows, columns))
        weight, bias = self.conv.weight[:, :, -1:] if lone else self.conv.weight, self.conv.bias
        side = self.kernel // 2
        if self.stride == 2:
            x_BCTHW, side = F.pad(x_BCTHW, (0, 1, 0, 1)), 0
        stride = (1 if lone else self.stride_t, self.stride, self.stride)
        return convolve(x_BCTHW, weight, bias if biased else None, stride, (0, side, side))


def _with_history(x_BCTHW: Tensor, old: Tensor | None, older: int, norm: FrameNorm | None, before_C: Tensor | None) -> Tensor:
    """Return the history (or `older` zero frames) followed by the normalised input, in a single write where it can be."""
    if norm is None:
        return F.pad(x_BCTHW, (0, 0, 0, 0, older, 0)) if old is None else torch.cat((old, x_BCTHW), dim=2)
    if old is None:
        out: Tensor = norm(x_BCTHW, older, before_C)
        return out
    if torch.is_grad_enabled():
        return torch.cat((old, norm(x_BCTHW)), dim=2)
    shape = (*x_BCTHW.shape[:2], old.shape[2] + x_BCTHW.shape[2], *x_BCTHW.shape[3:])
    seen = torch.empty(shape, dtype=x_BCTHW.dtype, device=x_BCTHW.device, memory_format=torch.channels_last_3d)
    seen[:, :, : old.shape[2]] = old
    norm.behind(x_BCTHW, seen, before_C)
    return seen


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
