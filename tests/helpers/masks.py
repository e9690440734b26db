"""Attention masks of every kind, and queries, keys and values that fit them."""

from __future__ import annotations

import torch
from torch import Tensor

from pretrain.attention.attention import Mask
from pretrain.attention.token_layout import Layout

SCALES = ((1, 1), (2, 2), (2, 3))
LAYOUT = Layout(text=3, frames=4, scales=SCALES)


def _masks() -> dict[str, Mask]:
    lengths = torch.tensor([[3], [1]])
    hidden = torch.tensor([[[False, True, False, False]], [[True, False, True, False]]])
    second = Layout(text=2, frames=2, scales=((1, 1), (3, 2)))
    return {
        "plain": Mask((LAYOUT,), torch.tensor([[3], [3]])),
        "padded text": Mask((LAYOUT,), lengths),
        "window": Mask((LAYOUT,), lengths, window=2),
        "hidden frames": Mask((LAYOUT,), lengths, hidden=hidden),
        "all": Mask((LAYOUT,), lengths, window=1, hidden=hidden),
        "hidden for all": Mask((LAYOUT,), lengths, hidden=torch.ones_like(hidden)),
        "no text": Mask((Layout(0, 3, SCALES),), torch.zeros(2, 1, dtype=torch.int64)),
        "cut": Mask((LAYOUT.cut(3, last=1),), lengths, window=1),
        "packed": Mask((LAYOUT, second), torch.tensor([[3, 1], [2, 2]]), window=2, hidden=hidden.repeat(1, 2, 1), padding=5),
    }


MASKS = _masks()


def qkv(mask: Mask, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(2, 3, mask.length, 8, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    return q, k, v


def real_tokens(mask: Mask) -> Tensor:
    """Return which tokens are neither padding nor padded text, bool (B, L)."""
    parts = []
    for number, layout in enumerate(mask.documents):
        parts += [torch.arange(layout.text) < mask.text_length[:, number : number + 1]]
        parts += [torch.ones(len(mask.text_length), layout.video, dtype=torch.bool)]
    return torch.cat([*parts, torch.zeros(len(mask.text_length), mask.padding, dtype=torch.bool)], dim=1)
