"""Attention under the mask of VideoAR, by three interchangeable backends.

In:  queries (scaled), keys, values (B, H, L, D) of a whole sequence, and a `Mask` that says who sees whom.
Out: the attended values, same shape.
Called by: pretrain.model (one plan a forward serves every block).

Legend: B samples, H heads, L tokens, D head dimension, G documents packed in one row.

Who sees whom (paper A3, Eq. 9): a video token sees its sample's text, all scales of the earlier frames that lie in the
window and are not hidden, the coarser scales of its own frame, and all of its own scale. Text sees earlier text.
Documents packed in one row do not see each other. A padding token is seen by no other token.

`blocks` (pretrain.blocks) computes only what is allowed and is the path on CPU; `flex` is FlexAttention, the path on
GPU; `dense` is plain scaled-dot-product attention with an L x L mask, the reference that the tests compare with.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.model.block_attention import BlockPlan
from pretrain.model.token_layout import Layout

Backend = Literal["auto", "blocks", "flex", "dense"]


class Attend(Protocol):
    """Attention of block `layer`, bound to its mask. q, k, v: (B, H, L, D), q scaled already; returns (B, H, L, D)."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend."""


@dataclass(frozen=True)
class Mask:
    """Who sees whom, for B rows of equal structure."""

    documents: tuple[Layout, ...]
    """Samples packed one after the other in each row; usually one."""
    text_length: Tensor
    """int64 (B, G): real text tokens of each document."""
    window: int = 0
    """Latent frames of history; 0 = all."""
    hidden: Tensor | None = None
    """bool (B, G, T): frames that later frames do not see."""
    padding: int = 0
    """Tokens behind the last document."""

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return sum(document.length for document in self.documents) + self.padding

    def rule(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Return FlexAttention's mask function (batch, head, query, key) -> bool. Works on broadcast index tensors too."""
        device = self.text_length.device
        document, frame, scale, index = (part.to(device) for part in self._tokens())
        text_length, window = self.text_length, self.window
        hidden = self.hidden
        text = len(self.documents)

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            same = (document[q] == document[k]) & (document[k] < text)
            q_is_text, k_is_text = frame[q] < 0, frame[k] < 0
            owner = document[k].clamp(max=text - 1)
            real = index[k] < text_length[b, owner]
            to_text = torch.where(q_is_text, index[k] <= index[q], real)
            earlier = frame[k] < frame[q]
            if window:
                earlier = earlier & (frame[q] - frame[k] <= window)
            if hidden is not None:
                earlier = earlier & ~hidden[b, owner, frame[k].clamp(min=0)]
            own = (frame[k] == frame[q]) & (scale[k] <= scale[q])
            seen = torch.where(k_is_text, to_text, ~q_is_text & (earlier | own))
            return (same & seen) | (q == k)

        return allowed

    def dense(self) -> Tensor:
        """Return the mask as bool (B, 1, L, L). For the reference and for tests only."""
        device = self.text_length.device
        b = torch.arange(self.text_length.shape[0], device=device).view(-1, 1, 1, 1)
        h = torch.zeros(1, dtype=torch.int64, device=device).view(1, -1, 1, 1)
        at = torch.arange(self.length, device=device)
        allowed = self.rule()(b, h, at.view(1, 1, -1, 1), at.view(1, 1, 1, -1))
        return allowed.expand(self.text_length.shape[0], 1, self.length, self.length)

    def _tokens(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Document, frame, scale and text index of each token, int64 (L); padding is a document of its own."""
        parts: list[list[Tensor]] = [[], [], [], []]
        for number, layout in enumerate(self.documents):
            tokens = layout.tokens()
            for part, value in zip(
                parts, (torch.full_like(tokens.frame, number), tokens.frame, tokens.scale, tokens.row), strict=True
            ):
                part.append(value)
        filler = torch.full((self.padding,), len(self.documents))
        for part, value in zip(parts, (filler, filler * 0, filler * 0, filler * 0), strict=True):
            part.append(value)
        document, frame, scale, index = (torch.cat(part) for part in parts)
        return document, frame, scale, index


def plan(backend: Backend, mask: Mask) -> Attend:
    """Bind `mask` to a backend; `auto` takes flex on CUDA and blocks elsewhere. Made once a forward, used by every block."""
    if backend == "auto":
        backend = "flex" if mask.text_length.device.type == "cuda" else "blocks"
    if backend == "blocks":
        blocks = BlockPlan.make(mask.documents, mask.text_length, mask.window, mask.hidden, mask.padding)
        return lambda layer, q, k, v: blocks.attend(q, k, v)
    if backend == "flex":
        return _flex(mask)
    dense_B1LL = mask.dense()
    return lambda layer, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=dense_B1LL, scale=1.0)


def _flex(mask: Mask) -> Attend:
    from torch.nn.attention.flex_attention import create_block_mask

    device = mask.text_length.device
    block = create_block_mask(mask.rule(), mask.text_length.shape[0], None, mask.length, mask.length, device=str(device))
    flex = _compiled_flex() if device.type == "cuda" else _eager_flex()

    def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out: Tensor = flex(q, k, v, block_mask=block, scale=1.0)
        return out

    return attend


def _eager_flex() -> Callable[..., Any]:
    """The uncompiled function: slow and dense, kept so that a CPU can check the mask."""
    from torch.nn.attention.flex_attention import flex_attention

    return flex_attention


@functools.cache
def _compiled_flex() -> Callable[..., Any]:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=False)


def allowed_pairs(layout: Layout, text_length: int, window: int = 0) -> int:
    """Return the (query, key) pairs that the mask allows for one sample without hidden frames: what attention must cost.

    Padding of the text counts nothing.
    """
    text = text_length * (text_length + 1) // 2
    total = text
    for frame in range(layout.frames):
        history = min(frame, window) if window else frame
        sizes = [rows * columns for rows, columns in layout.scales[: layout.scales_of(frame)]]
        before = text_length + history * layout.frame
        own = 0
        for size in sizes:
            own += size
            total += size * (before + own)
    return total
