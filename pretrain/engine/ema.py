"""An exponential moving average (EMA) of the weights, sharded: each rank keeps its slice of every parameter, in float32.

In:  the engine's fp32 slices after each applied step.
Out: slices by name, for a checkpoint; `join` makes whole tensors of the slices of any number of ranks.

Rank r of W keeps elements [r*c, (r+1)*c) of the flattened parameter, c = ceil(n / W), which is ZeRO-3's own partition.
Memory per rank: 4 bytes x parameters / ranks. No communication.

The decay warms up: after n updates it is at most (1 + n) / (10 + n), so a short run averages its last tenth and not the random
weights that it began with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor


def slice_of(flat: Tensor, rank: int, world: int) -> Tensor:
    """Return this rank's slice of a flat tensor; the last slices may be shorter, or empty."""
    count = -(-flat.numel() // world)
    return flat[rank * count : (rank + 1) * count]


def decay_at(decay: float, updates: int) -> float:
    """Return the decay of an update, which is number `updates`, counted from 1."""
    return min(decay, (1 + updates) / (10 + updates))


class Ema:
    """The average; call `update` once per step."""

    def __init__(self, decay: float) -> None:
        self.decay = decay
        self.slices: dict[str, Tensor] = {}
        self.updates = 0
        """Steps so far."""
        self.start_share = 1.0
        """How much of the average is what it began with, 0 to 1."""

    def start(self, current: Iterable[tuple[str, Tensor]]) -> None:
        """Set the average to the current weights."""
        self.slices = {name: value.detach().to(torch.float32, copy=True) for name, value in current}

    def resume(self, slices: dict[str, Tensor], updates: int, start_share: float | None) -> None:
        """Continue an average. start_share: None for one of an earlier version, whose decay did not warm up."""
        self.slices, self.updates = slices, updates
        self.start_share = self.decay**updates if start_share is None else start_share

    @torch.no_grad()
    def update(self, current: Iterable[tuple[str, Tensor]], applied: Tensor | None = None) -> None:
        """Move each slice towards the current weights by 1 - decay, unless the step that made them was not applied.

        applied: bool; on a GPU it is not read by the host, and a weight of 0 leaves the average as it is.
        """
        self.updates += 1
        decay = decay_at(self.decay, self.updates)
        if applied is not None and not applied.is_cuda and not bool(applied):
            return
        self.start_share *= decay
        weight = None if applied is None or not applied.is_cuda else applied * (1.0 - decay)
        for name, value in current:
            average, now = self.slices[name], value.detach().to(torch.float32)
            if weight is None:
                average.lerp_(now, 1.0 - decay)
            else:
                average.lerp_(now, weight)


def join(parts: Sequence[Mapping[str, Tensor]], shapes: Mapping[str, Sequence[int]]) -> dict[str, Tensor]:
    """Return whole tensors from the slices of all ranks, in rank order."""
    whole = {}
    for name, size in shapes.items():
        flat = torch.cat([part[name].flatten() for part in parts])
        whole[name] = flat.view(tuple(size))
    return whole
