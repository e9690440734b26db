"""Keys and values of all tokens so far, allocated once, and the attention of each forward over them.

In:  keys and values of each forward of the sampler.
Out: attention over everything that the new tokens may see.

Legend: R rows (captions, and as many null rows under guidance), H heads, L tokens, D head dimension, P text tokens, K scales.

A row holds the text, then up to window + 1 frames (all frames without a window). Frame t is in place t modulo that number, so a
frame that leaves the window is overwritten by a new one and nothing moves: attention does not depend on the order of its keys.
What a query may not see (padded text, what a place still holds of an older frame) is taken out by masks that are added to the
scores. They are made of tensors that stay where they are, and no value is read by the host, so that a CUDA graph can record each
forward. Key ranges end at multiples of ALIGN, which a GPU's kernel takes without copying the mask.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.attention.attention import Attend
from pretrain.attention.token_layout import Layout
from pretrain.model.config import ModelConfig

ALIGN = 16
"""Ranges of keys end at multiples of this."""


class KVCache:
    """Preallocated keys and values of every block. layout: of a whole clip."""

    def __init__(
        self,
        config: ModelConfig,
        layout: Layout,
        rows: int,
        window: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
    ) -> None:
        self.layout, self.window = layout, window
        self.room = min(layout.frames, window + 1) if window else layout.frames
        """Frames that the cache has room for: those of the window, and the one being made."""
        self.length = aligned(layout.text + self.room * layout.frame)
        head = config.width // config.heads
        self.data = torch.zeros((config.layers, 2, rows, config.heads, self.length, head), dtype=dtype, device=device)
        """(layers, 2, R, H, L, D): keys and values."""
        self._text_RL = torch.zeros(rows, aligned(layout.length), dtype=dtype, device=device)
        self._place_P = torch.arange(layout.text, device=device)
        closed = [self._closed(frame) for frame in range(min(layout.frames, 2 * self.room))]
        self._closed_FK1L = torch.stack(closed).unsqueeze(2).to(device=device, dtype=dtype)
        self._mask_KRL = self._closed_FK1L[0]

    def set_text(self, length_R: Tensor) -> None:
        """Take the real text lengths of the rows, on the cache's device."""
        self._text_RL[:, : self.layout.text] = torch.where(self._place_P < length_R.unsqueeze(1), 0.0, -math.inf)

    def begin(self, frame: int) -> None:
        """Begin a frame: make the masks of its scales. Frames must come in order."""
        number = frame if frame < self.room else self.room + frame % self.room
        self._mask_KRL = self._closed_FK1L[number] + self._text_RL[:, : self.length]

    def prefill(self, frame: int) -> Attend:
        """Return the attention of the first forward: text, whole frames before `frame`, and that frame's first scale."""
        layout, text = self.layout, self.layout.text
        spans = [layout.span(f, s) for f in range(frame) for s in range(len(layout.scales))] + [layout.span(frame, 0)]
        masks = []
        for begin, end in spans:
            mask_RL = self._text_RL[:, : aligned(end)].clone()
            mask_RL[:, end:].fill_(-math.inf)
            if self.window:
                first = max(0, (begin - text) // layout.frame - self.window)
                mask_RL[:, text : layout.span(first, 0)[0]].fill_(-math.inf)
            masks.append(mask_RL[:, None, None])
        length = spans[-1][1]

        def filled(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            self._keep(layer, k, v, frame)
            q_text, k_text, v_text = (x[:, :, :text] for x in (q, k, v))
            attended = [_attention(q_text, k_text, v_text, None)]
            k, v = (F.pad(x, (0, 0, 0, aligned(length) - length)) for x in (k, v))
            for (begin, end), mask in zip(spans, masks, strict=True):
                keys, values = k[:, :, : aligned(end)], v[:, :, : aligned(end)]
                attended.append(_attention(q[:, :, begin:end], keys, values, mask))
            return torch.cat(attended, dim=2)

        return filled

    def step(self, frame: int, scale: int) -> Attend:
        """Return the attention of a forward over (frame, scale) alone; `begin` of the frame comes first, and scales in order."""
        begin, end = self.layout.span(frame % self.room, scale)
        seen = aligned(end) if frame < self.room else self.length
        mask = self._mask_KRL[scale, :, None, None, :seen]

        def stepped(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            keys, values = self.data[layer]
            keys[:, :, begin:end] = k
            values[:, :, begin:end] = v
            return _attention(q, keys[:, :, :seen], values[:, :, :seen], mask)

        return stepped

    def _keep(self, layer: int, k: Tensor, v: Tensor, frame: int) -> None:
        """Keep the keys and values of the first forward: of the text, and of the frames that the cache has room for."""
        layout, text = self.layout, self.layout.text
        for kept, new in zip(self.data[layer], (k, v), strict=True):
            if frame < self.room:
                kept[:, :, : new.shape[2]] = new
                continue
            kept[:, :, :text] = new[:, :, :text]
            for number in range(frame + 1 - self.room, frame + 1):
                part = new[:, :, layout.span(number, 0)[0] :][:, :, : layout.frame]
                begin = layout.span(number % self.room, 0)[0]
                kept[:, :, begin : begin + part.shape[2]] = part

    def _closed(self, number: int) -> Tensor:
        """Return which places each scale of a frame may not see, (K, L) of 0 and -inf: what is not written yet, or of an old frame.

        number: of a frame that finds room, counted from 0; or the room plus the place of a frame that overwrites another.
        """
        layout = self.layout
        closed_KL = torch.zeros(len(layout.scales), self.length)
        for scale in range(len(layout.scales)):
            end = layout.span(number % self.room, scale)[1]
            stop = self.length if number < self.room else layout.span(number % self.room, 0)[0] + layout.frame
            closed_KL[scale, end:stop] = -math.inf
        closed_KL[:, layout.text + self.room * layout.frame :] = -math.inf
        return closed_KL


def aligned(length: int) -> int:
    """Return the next multiple of ALIGN."""
    return -(-length // ALIGN) * ALIGN


def _attention(q: Tensor, k: Tensor, v: Tensor, mask_R11L: Tensor | None) -> Tensor:
    """Return softmax(q k + mask) v, causal without a mask.

    On a GPU by the one kernel of PyTorch that takes such masks and plans nothing for each shape: it is named, since the usual
    choice depends on settings of the whole process.
    """
    is_causal = mask_R11L is None
    if not q.is_cuda:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask_R11L, is_causal=is_causal, scale=1.0)
    bias_RHQL = None if mask_R11L is None else mask_R11L.expand(*q.shape[:3], -1)
    attended: Tensor = torch.ops.aten._scaled_dot_product_efficient_attention(  # noqa: SLF001
        q, k, v, bias_RHQL, False, 0.0, is_causal, scale=1.0
    )[0]
    return attended
