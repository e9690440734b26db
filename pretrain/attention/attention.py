"""Attention under the mask of VideoAR, by three interchangeable backends.

In:  queries (scaled), keys, values (B, H, L, D) of whole sequences, and a `Mask` that says which token sees which.
Out: the attended values, same shape.

Legend: B samples, H heads, L tokens, D head dimension, G documents packed in one row, T latent frames.

The mask (paper A3, Eq. 9): a video token sees its sample's text, all scales of those earlier frames that are within the window
and not hidden, the coarser scales of its own frame, and all of its own scale. A text token sees itself and the text before it.
Documents packed in one row do not see each other. Padding is seen by no other token.

Backends: `flash` (varlen_plan.py, flash_attention.py) runs FlashAttention kernels over the parts of the mask, on a GPU in half
precision; `cudnn` is the same but for long sequences, which are cuDNN's: faster on Hopper cards and newer, where `auto` takes it,
but the last bits of its gradients vary. `blocks` (block_attention.py) is large products over what the mask allows, the path on a
CPU and in float32; `dense` is plain scaled-dot-product attention with an L x L mask, the reference for tests. What a text token
that is padding, or a token of the row's padding attends to is the backend's choice: nothing reads it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from pretrain.attention import flash_attention
from pretrain.attention.block_attention import BlockAttention
from pretrain.attention.planner import make_plan
from pretrain.attention.token_layout import Layout
from pretrain.attention.varlen_plan import LONG, LONG_MULTIPLE, VarlenPlan

Backend = Literal["auto", "blocks", "flash", "cudnn", "dense"]
VARLEN: tuple[Backend, ...] = ("flash", "cudnn")
"""Backends that compute a `VarlenPlan`."""


class Attend(Protocol):
    """Attention of block `layer`, bound to its mask. q, k, v: (B, H, L, D), q already scaled; returns (B, H, L, D)."""

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attend."""


@dataclass(frozen=True)
class Mask:
    """Which token sees which, for B rows of equal structure. Its tensors are on the CPU: a plan is made of their values."""

    documents: tuple[Layout, ...]
    """Samples packed one after the other in each row; usually one."""
    text_length: Tensor
    """int64 (B, G): real text tokens of each document."""
    window: int = 0
    """Latent frames of history; 0 = all."""
    hidden: Tensor | None = None
    """bool (B, G, T): frames that later frames do not see."""
    padding: int = 0
    """Tokens after the last document."""

    @property
    def length(self) -> int:
        """Tokens of a row."""
        return sum(document.length for document in self.documents) + self.padding

    def rule(self) -> Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]:
        """Return the mask function (batch, head, query, key) -> bool over broadcast index tensors."""
        document, frame, scale, index = self._tokens()
        text_length, window, hidden, count = self.text_length, self.window, self.hidden, len(self.documents)

        def allowed(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            in_document = (document[q] == document[k]) & (document[k] < count)
            q_is_text, k_is_text = frame[q] < 0, frame[k] < 0
            number = document[k].clamp(max=count - 1)
            is_real = index[k] < text_length[b, number]
            sees_text = torch.where(q_is_text, index[k] <= index[q], is_real)
            sees_earlier = frame[k] < frame[q]
            if window:
                sees_earlier = sees_earlier & (frame[q] - frame[k] <= window)
            if hidden is not None:
                sees_earlier = sees_earlier & ~hidden[b, number, frame[k].clamp(min=0)]
            sees_own = (frame[k] == frame[q]) & (scale[k] <= scale[q])
            sees = torch.where(k_is_text, sees_text, ~q_is_text & (sees_earlier | sees_own))
            return (in_document & sees) | (q == k)

        return allowed

    def dense(self) -> Tensor:
        """Return the mask as bool (B, 1, L, L): for the reference backend and for tests."""
        rows = self.text_length.shape[0]
        b = torch.arange(rows).view(-1, 1, 1, 1)
        h = torch.zeros(1, dtype=torch.int64).view(1, -1, 1, 1)
        at = torch.arange(self.length)
        allowed = self.rule()(b, h, at.view(1, 1, -1, 1), at.view(1, 1, 1, -1))
        return allowed.expand(rows, 1, self.length, self.length)

    def _tokens(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return document, frame, scale and text index of each token, int64 (L). Padding is a document of its own."""
        parts = []
        for number, layout in enumerate(self.documents):
            tokens = layout.tokens()
            parts.append((torch.full_like(tokens.frame, number), tokens.frame, tokens.scale, tokens.row))
        padding = torch.full((self.padding,), len(self.documents))
        parts.append((padding, padding * 0, padding * 0, padding * 0))
        document, frame, scale, index = (torch.cat(part) for part in zip(*parts, strict=True))
        return document, frame, scale, index


def resolve(backend: Backend, device: torch.device, dtype: torch.dtype) -> Backend:
    """Return the backend that `auto` stands for: in half precision on a GPU cudnn from Hopper on, else flash; otherwise blocks."""
    if backend != "auto":
        return backend
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return "blocks"
    return "cudnn" if torch.cuda.get_device_capability(device) >= (9, 0) else "flash"


def plan_of(mask: Mask, backend: Backend, device: torch.device) -> VarlenPlan:
    """Return the plan of `flash` or `cudnn` for a mask."""
    hidden = None if mask.hidden is None else mask.hidden.tolist()
    long = LONG if backend == "cudnn" else 0
    return make_plan(mask.documents, mask.text_length.tolist(), mask.window, hidden, mask.padding, device, long)


def spare(backend: Backend, layout: Layout, samples: int) -> int:
    """Return tokens of padding by which a row of so many samples must be longer, so that its long runs have few lengths."""
    return (samples - 1) * LONG_MULTIPLE if backend == "cudnn" and layout.length >= LONG else 0


def bind_mask(backend: Backend, mask: Mask, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Attend:
    """Return attention under `mask`, once per forward for all blocks.

    device, dtype: of queries, keys and values (default: the mask's device, float32).
    """
    device = mask.text_length.device if device is None else device
    chosen = resolve(backend, device, dtype)
    if chosen in VARLEN:
        plan = plan_of(mask, chosen, device)
        return lambda layer, q, k, v: flash_attention.attend(q, k, v, plan)
    if chosen == "blocks":
        blocks = BlockAttention.make(mask.documents, mask.text_length, mask.window, mask.hidden, mask.padding).to(device)
        return lambda layer, q, k, v: blocks.attend(q, k, v)
    dense_B1LL = mask.dense().to(device)
    return lambda layer, q, k, v: F.scaled_dot_product_attention(q, k, v, attn_mask=dense_B1LL, scale=1.0)
