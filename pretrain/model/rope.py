"""Multi-scale Temporal RoPE (paper Eq. 7) and its ablations.

In:  a layout and the real text length of each sample.
Out: positions, their cosines and sines, and the rotation of queries and keys.

Legend: B samples, L tokens, K scales, H heads, D head dimension, P = D / 2 frequency pairs, A = 3 axes (time, height, width).

Text token i is at (i, i, i); video token (t, h, w) is at (t + n, h + n, w + n), n the sample's real text length. The frequencies
form one ladder base^(-j/P), dealt out to the axes in turn by their shares. All axes thus agree on text, which sees plain 1D RoPE,
and every axis gets fast and slow pairs. (Cut into three consecutive runs, the ladder left the width its slowest pairs, under
0.025 rad over 8 columns: models learned rows and no columns. docs/log.md, 2026-11-22.)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence

import torch
from torch import Tensor

from pretrain.attention.token_layout import Layout, sent
from pretrain.model.config import ModelConfig


def axes(pairs: int, shares: Sequence[float]) -> list[int]:
    """Return the axis (0 time, 1 height, 2 width) of each pair: each pair goes to the axis that is furthest behind its share."""
    given = [0, 0, 0]
    found: list[int] = []
    for number in range(1, pairs + 1):
        behind = [share * number - count for share, count in zip(shares, given, strict=True)]
        axis = max(range(3), key=lambda a: round(behind[a], 9))
        given[axis] += 1
        found.append(axis)
    return found


def positions(layout: Layout, text_length_B: Tensor, kind: str = "multiscale", spatial: str = "raw") -> Tensor:
    """Return float32 positions (B, L, A) of a whole layout, on the device of `text_length_B`.

    kind: `multiscale`, or `flat` (1D over the sequence). spatial: `raw` grid index; or `aligned`, the index times
    (rows of the last scale / rows of this one), so that equal places of all scales share an index.
    """
    base_LA, is_video_L = _base(layout, kind, spatial, text_length_B.device)
    return base_LA + text_length_B.to(torch.float32)[:, None, None] * is_video_L[:, None]


@functools.lru_cache(maxsize=64)
def _base(layout: Layout, kind: str, spatial: str, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return positions without the text's length, float32 (L, A), and which tokens it shifts, bool (L). Kept while nothing changes."""
    tokens = layout.tokens()
    is_video_L = tokens.frame >= 0
    if kind == "flat":
        index_L = torch.cat((torch.arange(layout.text), torch.arange(layout.video)))
        base_LA = index_L.unsqueeze(1).expand(-1, 3).to(torch.float32)
    else:
        row_L, column_L = tokens.row.to(torch.float32), tokens.column.to(torch.float32)
        if spatial == "aligned":
            sizes_K2 = torch.tensor(layout.scales, dtype=torch.float32)
            stretch_K2 = sizes_K2[-1] / sizes_K2
            scale_L = tokens.scale.clamp(min=0)
            row_L = torch.where(is_video_L, row_L * stretch_K2[scale_L, 0], row_L)
            column_L = torch.where(is_video_L, column_L * stretch_K2[scale_L, 1], column_L)
        time_L = torch.where(is_video_L, tokens.frame, tokens.row).to(torch.float32)
        base_LA = torch.stack((time_L, row_L, column_L), dim=1)
    return sent(base_LA.contiguous(), device), sent(is_video_L, device)


def tables(positions_BLA: Tensor, config: ModelConfig) -> tuple[Tensor, Tensor]:
    """Return cosines and sines, float32 (B, 1, L, P)."""
    pairs = config.width // config.heads // 2
    device = positions_BLA.device
    ladder_P, axis_P = _ladder(pairs, config.rope_base, config.rope_split, device)
    angles_BLP = positions_BLA[:, :, axis_P] * ladder_P
    return angles_BLP.cos().unsqueeze(1), angles_BLP.sin().unsqueeze(1)


@functools.lru_cache(maxsize=64)
def _ladder(pairs: int, base: float, split: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the frequency and the axis of each pair, (P) each. Kept while nothing changes."""
    ladder_P = base ** (-torch.arange(pairs, dtype=torch.float32, device=device) / pairs)
    return ladder_P, sent(torch.tensor(axes(pairs, split)), device)


def rotate(x_BHLD: Tensor, cos_B1LP: Tensor, sin_B1LP: Tensor) -> Tensor:
    """Rotate pair j = (x_j, x_{j+P}) by its angle. Same shape and type as `x_BHLD`."""
    first, second = x_BHLD.chunk(2, dim=-1)
    return torch.cat((first * cos_B1LP - second * sin_B1LP, second * cos_B1LP + first * sin_B1LP), dim=-1).to(x_BHLD.dtype)
