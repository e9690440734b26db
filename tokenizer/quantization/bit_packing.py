"""Bits of all scales to the bytes that shards hold, and back.

One latent frame is one run of bytes: scale by scale, row by row, column by column, bit by bit; the first bit is the lowest of
its byte.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenizer.quantization.scale_schedule import ScaleError, Scales


def pack(bits: Sequence[Tensor]) -> Tensor:
    """Bits of all scales, bool (N,h_k,w_k,d), to bytes, uint8 (N, frame_bytes). Raises ScaleError when they fill no whole bytes."""
    flat = torch.cat([item.flatten(1) for item in bits], dim=1)
    if flat.shape[1] % 8:
        raise ScaleError(f"{flat.shape[1]} bits per frame do not fill whole bytes; use a number of bits divisible by 8")
    places = 2 ** torch.arange(8, device=flat.device, dtype=torch.uint8)
    octets: Tensor = flat.unflatten(1, (-1, 8)).to(torch.uint8)
    return (octets * places).sum(-1, dtype=torch.uint8)


def unpack(packed_NB: Tensor, scales: Scales, d: int) -> list[Tensor]:
    """Inverse of `pack`: uint8 (N, frame_bytes) to bool maps (N,h_k,w_k,d). Raises ScaleError for a wrong length."""
    wanted = sum(rows * columns for rows, columns in scales) * d
    if packed_NB.ndim != 2 or packed_NB.shape[1] * 8 != wanted:
        raise ScaleError(f"packed bits of shape {tuple(packed_NB.shape)}: these scales need {wanted // 8} bytes per frame")
    places = torch.arange(8, device=packed_NB.device, dtype=torch.uint8)
    flat = ((packed_NB.unsqueeze(-1) >> places) & 1).bool().flatten(1)
    maps: list[Tensor] = []
    begin = 0
    for rows, columns in scales:
        size = rows * columns * d
        maps.append(flat[:, begin : begin + size].unflatten(1, (rows, columns, d)))
        begin += size
    return maps
