"""One global batch's share of a rank, as the model takes it.

Legend: B samples, L text tokens.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class Batch:
    """Equal-shape samples of one bucket. Packed bits travel to the device as bytes and are unpacked there."""

    bits: Tensor
    """uint8 (B, bytes): packed bits in the order of the shards (frame, scale, row, column, bit)."""
    text: Tensor
    """int64 (B, L): text tokens, right-padded with 0."""
    text_length: Tensor
    """int64 (B): real text tokens of each sample."""
    weight: Tensor
    """float32 (B): 1 / global batch for a sample that counts, 0 for one that only fills the shape.

    Sums to 1 over all ranks and micro-batches.
    """
    seeds: Tensor
    """int64 (B): seed of all random draws of the sample (flips, masks, condition drop).

    A function of run seed, step and slot in the global batch, so it does not depend on the number of ranks.
    """
    grid: tuple[int, int, int]
    """Latent frames, rows, columns."""
    ids: tuple[str, ...]
    """Sample keys, one a sample."""
    row: int = 0
    """Tokens of the one row that all samples share (packing.py); 0 = each sample is a row."""
    spans: tuple[int, ...] = ()
    """Text tokens that each sample has in the shared row: its own, and at least one for the null token."""
    features: Tensor | None = None
    """Optional bfloat16 (B, latent frames, d, h, w): continuous features, for re-quantisation from the true residual."""

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        moved = {
            name: getattr(self, name).to(device, non_blocking=True)
            for name in ("bits", "text", "text_length", "weight", "seeds")
        }
        features = None if self.features is None else self.features.to(device, non_blocking=True)
        return replace(self, features=features, **moved)
