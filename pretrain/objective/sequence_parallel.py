"""Ulysses sequence parallelism: the ranks of a group share each sequence, by tokens outside attention and by heads inside.

In:  the stages' `sequence_parallel`, this process among the ranks.
Out: `SequenceGroup`s; `SequenceShare`, which cuts rows, wraps attention and picks the video tokens whose loss this rank computes.

Legend: B rows, L tokens of a row, S tokens of a row that a rank holds, H heads, D head dimension, W ranks of a group, N video tokens.

    tokens 0..S-1   ─ rank 0 ─┐ all-to-all   heads 0..H/W-1, all tokens ─ attention ─┐ all-to-all   tokens 0..S-1
    tokens S..2S-1  ─ rank 1 ─┘ (q, k, v)    heads H/W..H-1, all tokens ─ attention ─┘ (output)     tokens S..2S-1

A rank's loss is the sum over its own tokens, weighted over the global batch, so an all-reduce still gives the loss of the global
batch, and ZeRO, which adds gradients over all ranks, needs no change. DeepSpeed's own `DistributedAttention` is not used: it sends
queries, keys and values one by one, needs another layout, and would import `deepspeed` in one more place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from cluster.runtime.process_group import Ranks
from pretrain.attention.attention import Attend
from pretrain.data.config import Stage, ranks_per_sequence
from pretrain.data.curriculum import CurriculumError


@dataclass(frozen=True)
class SequenceGroup:
    """The consecutive ranks that share a sequence, as one of them sees it."""

    size: int
    """Ranks of the group."""
    index: int
    """Number of this rank among them."""
    handle: Any
    """torch's process group."""


class SequenceGroups:
    """The groups of a run, one set for each size that a stage uses. All ranks must create it together."""

    def __init__(self, ranks: Ranks, stages: Sequence[Stage], heads: int, timeout: float) -> None:
        """Raise CurriculumError if the heads do not divide among the ranks of a group. timeout: of a collective, in seconds."""
        self._world = ranks.world
        self._groups: dict[int, SequenceGroup] = {}
        for stage in stages:
            if heads % stage.sequence_parallel:
                raise CurriculumError(
                    f"stage {stage.name}: sequence_parallel {stage.sequence_parallel} does not divide model.heads {heads}"
                )
        for size in sorted({ranks_per_sequence(stage, ranks.world) for stage in stages} - {1}):
            for first in range(0, ranks.world, size):
                members = list(range(first, first + size))
                handle = torch.distributed.new_group(members, timeout=timedelta(seconds=timeout))
                if ranks.rank in members:
                    self._groups[size] = SequenceGroup(size, ranks.rank - first, handle)

    def of(self, stage: Stage) -> SequenceGroup | None:
        """Return this rank's group in a stage; None if each rank has sequences of its own."""
        return self._groups.get(ranks_per_sequence(stage, self._world))


@dataclass(frozen=True)
class SequenceShare:
    """One rank's part of rows of `length` tokens; the part of the last rank is padded."""

    group: SequenceGroup
    length: int

    @property
    def each(self) -> int:
        """S: tokens of a row that every rank holds."""
        return -(-self.length // self.group.size)

    def cut(self, x_BLx: Tensor) -> Tensor:
        """Return this rank's tokens (B, S, ...) of whole rows (B, L, ...)."""
        begin = self.group.index * self.each
        part = x_BLx[:, begin : begin + self.each]
        missing = self.each - part.shape[1]
        return F.pad(part, (0, 0) * (part.dim() - 2) + (0, missing)) if missing else part

    def attend(self, inner: Attend) -> Attend:
        """Return attention over this rank's tokens, which runs `inner` on whole rows for this rank's share of the heads."""
        size, each = self.group.size, self.each

        def attend(layer: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
            by_heads = torch.stack((q, k, v)).unflatten(2, (size, -1)).movedim(2, 0)  # (W, 3, B, H / W, S, D)
            by_tokens = exchange(by_heads, self.group)  # same shape, W now along the sequence
            whole = by_tokens.movedim(0, 3).flatten(3, 4)[:, :, :, : self.length]  # (3, B, H / W, L, D)
            out = F.pad(inner(layer, whole[0], whole[1], whole[2]), (0, 0, 0, size * each - self.length))
            back = exchange(out.unflatten(2, (size, each)).movedim(2, 0), self.group)  # (W, B, H / W, S, D)
            return back.movedim(0, 1).flatten(1, 2)

        return attend

    def mine(self, places_BN: Tensor, rows_BN: Tensor) -> tuple[Tensor, Tensor]:
        """Return which video tokens are in this rank's part, bool (B, N), and their indices into rows x S, int64.

        places_BN: place of each video token in its row. rows_BN: number of that row.
        """
        begin = self.group.index * self.each
        inside = (places_BN >= begin) & (places_BN < begin + self.each)
        return inside, (rows_BN * self.each + places_BN - begin)[inside]


def exchange(x_Wx: Tensor, group: SequenceGroup) -> Tensor:
    """All-to-all: send part w of the first axis to rank w of the group, and receive part w of the result from it. Differentiable."""
    out: Tensor = _Exchange.apply(x_Wx, group)  # type: ignore[no-untyped-call]
    return out


class _Exchange(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, group: SequenceGroup) -> Tensor:
        ctx.group = group
        return _sent(x, group)

    @staticmethod
    @once_differentiable  # type: ignore[untyped-decorator]
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _sent(grad, ctx.group), None


def _sent(x: Tensor, group: SequenceGroup) -> Tensor:
    x = x.contiguous()
    out = torch.empty_like(x)
    torch.distributed.all_to_all_single(out, x, group=group.handle)
    return out
