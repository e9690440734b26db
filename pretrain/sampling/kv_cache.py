"""Keys and values of all tokens so far, allocated once; frames that leave the attention window are dropped.

In:  keys and values of each forward of the sampler.
Out: attention over everything that the new tokens may see.

Legend: B rows (captions, and as many null rows under guidance), H heads, L tokens, D head dimension.

A row holds the text, then up to window + 1 frames (all frames without a window). When a frame begins and there is no room, the
oldest frame is dropped and the others move up, so what a query sees is always a contiguous prefix of the row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.attention import Attend
from pretrain.model.config import ModelConfig
from pretrain.model.token_layout import Layout


class KVCache:
    """Preallocated keys and values of every block."""

    def __init__(self, config: ModelConfig, layout: Layout, text_length_B: Tensor, window: int, dtype: torch.dtype) -> None:
        self.layout = layout
        self.room = min(layout.frames, window + 1) if window else layout.frames
        """Frames that the cache has room for: those of the window, and the one being made."""
        head = config.width // config.heads
        shape = (config.layers, 2, text_length_B.shape[0], config.heads, layout.text + self.room * layout.frame, head)
        self.data = torch.zeros(shape, dtype=dtype, device=text_length_B.device)
        """(layers, 2, B, H, L, D): keys and values."""
        self._first = 0
        """Number of the first frame in the cache."""
        is_real = torch.arange(shape[4], device=text_length_B.device) < text_length_B.unsqueeze(1)
        is_real[:, layout.text :] = True
        self._real_B11L = None if bool(is_real.all()) else is_real[:, None, None]
        """False where a row's text is padding; None when no text is padded."""

    def prefill(self, attend: Attend, frame: int) -> Attend:
        """Return the attention of the first forward: text, whole frames before `frame`, and that frame's first scale.

        attend: attention over that sequence. Its keys and values are kept for the forwards that follow.
        """
        text, length = self.layout.text, self.layout.frame
        first = self._first = max(0, frame + 1 - self.room)

        def filled(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for kept, new in zip(self.data[layer], (k, v), strict=True):
                kept[:, :, :text] = new[:, :, :text]
                video = new[:, :, text + first * length :]
                kept[:, :, text : text + video.shape[2]] = video
            return attend(layer, q, k, v)

        return filled

    def step(self, frame: int, scale: int) -> Attend:
        """Return the attention of a forward over (frame, scale) alone; frames and scales must come in order."""
        if scale == 0 and frame - self._first >= self.room:
            self._drop_oldest()
        begin, end = self.layout.span(frame - self._first, scale)
        mask = None if self._real_B11L is None else self._real_B11L[..., :end]

        def stepped(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.data[layer]
            keys[:, :, begin:end] = k
            values[:, :, begin:end] = v
            return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=mask, scale=1.0)

        return stepped

    def _drop_oldest(self) -> None:
        text, length = self.layout.text, self.layout.frame
        for kept in self.data:
            # One frame at a time, so that source and target never overlap.
            for at in range(text, kept.shape[3] - length, length):
                kept[:, :, :, at : at + length] = kept[:, :, :, at + length : at + 2 * length]
        self._first += 1
