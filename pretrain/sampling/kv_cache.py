"""Keys and values of the tokens so far, allocated once; frames behind the window are let go.

In:  keys and values of each forward of the sampler.
Out: attention over everything that the new tokens may see.
Called by: pretrain.sample.

Legend: B rows (captions, and as many null rows under guidance), H heads, L tokens, D head dimension, S tokens of a frame.

A row holds the text, then up to window + 1 frames (all frames without a window). When a frame begins and there is no
room, the oldest one goes and the others move up, so what a query sees is always the contiguous beginning of the row.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.attention import Attend
from pretrain.model.config import ModelConfig
from pretrain.model.token_layout import Layout


def kept_frames(frames: int, window: int) -> int:
    """Frames that the cache has room for: the window and the frame being made."""
    return min(frames, window + 1) if window else frames


def cache_bytes(config: ModelConfig, layout: Layout, rows: int, window: int, element: int) -> int:
    """Return the bytes of the cache: 2 (keys, values) x layers x rows x tokens x width x `element` bytes."""
    tokens = layout.text + kept_frames(layout.frames, window) * layout.frame
    return 2 * config.layers * rows * tokens * config.width * element


class Cache:
    """Preallocated keys and values of every block."""

    def __init__(self, config: ModelConfig, layout: Layout, text_length_B: Tensor, window: int, dtype: torch.dtype) -> None:
        self.layout, self.window = layout, window
        self._room = kept_frames(layout.frames, window)
        size = config.width // config.heads
        shape = (config.layers, 2, text_length_B.shape[0], config.heads, layout.text + self._room * layout.frame, size)
        self._kept = torch.zeros(shape, dtype=dtype, device=text_length_B.device)
        self._first = 0
        is_real = torch.arange(shape[4], device=text_length_B.device) < text_length_B.unsqueeze(1)
        is_real[:, layout.text :] = True
        self._seen = None if bool(is_real.all()) else is_real[:, None, None]

    @property
    def bytes(self) -> int:
        """Bytes held."""
        return self._kept.numel() * self._kept.element_size()

    def prefill(self, attend: Attend, frame: int) -> Attend:
        """Return the attention of the first forward: text, whole frames before `frame`, and that frame's first scale.

        attend: attention over that sequence. Its keys and values are kept for the steps that follow.
        """
        text, length = self.layout.text, self.layout.frame
        first = self._first = max(0, frame + 1 - self._room)

        def filled(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            for kept, new in zip(self._kept[layer], (k, v), strict=True):
                kept[:, :, :text] = new[:, :, :text]
                video = new[:, :, text + first * length :]
                kept[:, :, text : text + video.shape[2]] = video
            return attend(layer, q, k, v)

        return filled

    def step(self, frame: int, scale: int) -> Attend:
        """Return the attention of a forward over (frame, scale) alone; frames and scales come in order."""
        if scale == 0 and frame - self._first >= self._room:
            self._drop_oldest()
        begin, end = self.layout.span(frame - self._first, scale)
        seen = None if self._seen is None else self._seen[..., :end]

        def stepped(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self._kept[layer]
            keys[:, :, begin:end] = k
            values[:, :, begin:end] = v
            return F.scaled_dot_product_attention(q, keys[:, :, :end], values[:, :, :end], attn_mask=seen, scale=1.0)

        return stepped

    def _drop_oldest(self) -> None:
        text, length = self.layout.text, self.layout.frame
        for kept in self._kept:
            # Frame by frame, so that source and target never overlap.
            for at in range(text, kept.shape[3] - length, length):
                kept[:, :, :, at : at + length] = kept[:, :, :, at + length : at + 2 * length]
        self._first += 1
