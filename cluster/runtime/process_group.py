"""This process among all of the job: its number, and the few collectives that training uses.

Called by: everything that runs on several ranks. engine.connect makes it. All ranks make the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Ranks:
    """This process among all of the job."""

    rank: int
    world: int
    device: torch.device
    hosts: tuple[str, ...]
    """Host of each rank."""

    def sum(self, values: Tensor) -> Tensor:
        """Return the element-wise sum over ranks (in place, on the device)."""
        if self.world > 1:
            torch.distributed.all_reduce(values)
        return values

    def gather(self, value: Any) -> list[Any]:
        """Return every rank's object, in rank order."""
        if self.world == 1:
            return [value]
        found: list[Any] = [None] * self.world
        torch.distributed.all_gather_object(found, value)
        return found

    def from_first(self, value: Any) -> Any:
        """Return rank 0's object on every rank."""
        if self.world == 1:
            return value
        box = [value]
        torch.distributed.broadcast_object_list(box, src=0, device=self.device if self.device.type == "cuda" else None)
        return box[0]

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.world > 1:
            torch.distributed.barrier()


def pack(values: Sequence[Tensor | float], device: torch.device) -> Tensor:
    """Return one float64 vector of scalars and vectors, for one all-reduce a step."""
    parts = [value.detach().flatten() if isinstance(value, Tensor) else torch.tensor([value]) for value in values]
    return torch.cat([part.to(device=device, dtype=torch.float64) for part in parts])
