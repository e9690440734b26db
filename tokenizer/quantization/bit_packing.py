"""DOC from tokenizer/quantization/bsq.py."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tokenizer.quantization.scale_schedule import Scales


def pack(bits: Sequence[Tensor]) -> Tensor:
    """Bits of all scales to bytes, uint8 (N, frame_bytes): order scale, row, column, bit; lowest bit first."""
    flat = torch.cat([item.flatten(1) for item in bits], dim=1)
    if flat.shape[1] % 8:
        raise ValueError(f"{flat.shape[1]} bits a frame do not fill whole bytes; take a number of bits divisible by 8")
    places = 2 ** torch.arange(8, device=flat.device, dtype=torch.uint8)
    octets: Tensor = flat.unflatten(1, (-1, 8)).to(torch.uint8)
    return (octets * places).sum(-1, dtype=torch.uint8)


def unpack(packed_NB: Tensor, scales: Scales, d: int) -> list[Tensor]:
    """Inverse of `pack`: uint8 (N, frame_bytes) to bool maps (N,h_k,w_k,d). Raises ValueError for a wrong length."""
    wanted = sum(rows * columns for rows, columns in scales) * d
    if packed_NB.ndim != 2 or packed_NB.shape[1] * 8 != wanted:
        raise ValueError(f"packed bits of shape {tuple(packed_NB.shape)}: these scales take {wanted // 8} bytes a frame")
    places = torch.arange(8, device=packed_NB.device, dtype=torch.uint8)
    flat = ((packed_NB.unsqueeze(-1) >> places) & 1).bool().flatten(1)
    maps: list[Tensor] = []
    begin = 0
    for rows, columns in scales:
        size = rows * columns * d
        maps.append(flat[:, begin : begin + size].unflatten(1, (rows, columns, d)))
        begin += size
    return maps
