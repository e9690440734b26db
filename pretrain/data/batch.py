"""A global batch: how its samples are dealt to ranks and micro-batches, and the tensors of one micro-batch.

In:  the text length of every sample of the global batch (from the index, so all ranks know them), tokens of the video, limits.
Out: an `Arrangement` of slots, the same on every rank; `Batch`, what the objective takes.

Legend: B samples, L text tokens.

A step takes samples of one bucket, so their video tokens are equally many. What can be wasted is text, padded to the longest
caption of the global batch, and fill samples of weight 0, where ranks and micro-batches do not divide the batch. Where that waste
is above a stated share, samples are packed: several share one row of tokens (pretrain/objective/packed_row.py), and rows are
filled evenly under a token budget.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

TEXT_MULTIPLE = 8
"""Unpacked text is padded to a multiple of this, so that few shapes occur."""
ROW_STEPS = 128
"""A row's length is a multiple of budget / ROW_STEPS: few shapes occur, and rounding up costs less than 1 / ROW_STEPS."""


@dataclass(frozen=True)
class Host:
    """What the host must know of a batch."""

    seeds: Tensor
    """int64 (B), on the CPU."""
    text_length: Tensor
    """int64 (B), on the CPU."""


@dataclass(frozen=True)
class Batch:
    """One micro-batch: samples of equal shape. Packed bits travel to the device as bytes and are unpacked there."""

    bits: Tensor
    """uint8 (B, bytes): packed bits in the order of the shards (frame, scale, row, column, bit)."""
    text: Tensor
    """int64 (B, L): text tokens, right-padded with 0."""
    text_length: Tensor
    """int64 (B): real text tokens of each sample."""
    weight: Tensor
    """float32 (B): 1 / global batch size, or 0 for a fill sample. Sums to 1 over all ranks and micro-batches of a step."""
    seeds: Tensor
    """int64 (B): seed of all random draws of a sample (flips, masks, condition drop).

    A function of run seed, step and slot in the global batch, so it does not depend on the number of ranks.
    """
    grid: tuple[int, int, int]
    """Latent frames, rows, columns."""
    ids: tuple[str, ...]
    """Sample keys."""
    row: int = 0
    """Tokens of the row that all samples share when packed; 0 = each sample is a row."""
    spans: tuple[int, ...] = ()
    """Text tokens that each sample keeps in the shared row: its own, and at least one for the null token."""
    features: Tensor | None = None
    """Optional bfloat16 (B, latent frames, d, h, w): continuous features, for re-quantization from the true residual."""
    host: Host | None = None
    """Copies on the CPU of what decides the shape of the mask, when the batch itself is on another device."""

    @property
    def known(self) -> Host:
        """Seeds and text lengths on the CPU: the host reads them without waiting for the device."""
        return self.host or Host(self.seeds, self.text_length)

    def to(self, device: torch.device | str) -> Batch:
        """Return the batch on `device`."""
        return replace(self._map(lambda tensor: tensor.to(device, non_blocking=True)), host=self.known)

    def pin_memory(self) -> Batch:
        """Return the batch in page-locked memory, from which copies to a GPU are asynchronous."""
        return self._map(lambda tensor: tensor.pin_memory())

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        moved: dict[str, Any] = {name: function(value) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return replace(self, **moved)


@dataclass(frozen=True)
class Split:
    """A global batch divided into equal shapes and counts on every rank."""

    micro_batch: int
    """Samples of a micro-batch: train.micro_batch, or fewer when the global batch cannot fill it."""
    accumulation: int
    """Micro-batches per rank and step."""

    def slots(self, batch: int, rank: int, world: int) -> list[list[int]]:
        """Return the slots of each micro-batch of `rank`; a slot number of `batch` or more is a fill sample of weight 0."""
        mine = [rank + world * i for i in range(self.micro_batch * self.accumulation)]
        return [mine[i : i + self.micro_batch] for i in range(0, len(mine), self.micro_batch)]


def split(batch: int, micro_batch: int, world: int) -> Split:
    """Divide a global batch of `batch` samples among `world` ranks, at most `micro_batch` samples at a time."""
    each = -(-batch // world)
    accumulation = -(-each // micro_batch)
    return Split(micro_batch=-(-each // accumulation), accumulation=accumulation)


@dataclass(frozen=True)
class Arrangement:
    """How one global batch is dealt to ranks and micro-batches."""

    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    """By rank, by micro-batch: slots; a slot number of the batch's size or more is a fill sample of weight 0."""
    text: int
    """Text tokens that a sample is padded to outside a packed row."""
    row: int
    """Tokens of the row that a micro-batch's samples share; 0 = not packed."""
    positions: int
    """Positions that all ranks together compute, padding included."""


def arrange(
    lengths: Sequence[int], video: int, longest: int, *, micro_batch: int, world: int, budget: int, above: float
) -> Arrangement:
    """Arrange a global batch: packed if that is allowed and the unpacked arrangement would waste more than `above` of its positions.

    lengths: text tokens by slot. video: video tokens of a sample. longest: most text tokens that a sample may have.
    budget: most tokens of a packed row; 0 = never pack.
    """
    batch = len(lengths)
    parts = split(batch, micro_batch, world)
    text = min(longest, -(-max(1, *lengths) // TEXT_MULTIPLE) * TEXT_MULTIPLE)
    positions = world * parts.micro_batch * parts.accumulation * (text + video)
    sizes = [video + max(1, length) for length in lengths]
    if budget and max(sizes) <= budget and sum(sizes) < (1 - above) * positions:
        packed = _packed(sizes, world, budget, positions)
        if packed is not None:
            row, rows = packed
            ranks = tuple(tuple(rows[rank::world]) for rank in range(world))
            return Arrangement(ranks, text, row, len(rows) * row)
    unpacked = tuple(tuple(tuple(slots) for slots in parts.slots(batch, rank, world)) for rank in range(world))
    return Arrangement(unpacked, text, 0, positions)


def _packed(sizes: list[int], world: int, budget: int, positions: int) -> tuple[int, list[tuple[int, ...]]] | None:
    """Return the row length and the slots of each row; None if no packing needs fewer than `positions` positions."""
    step = max(1, budget // ROW_STEPS)
    found: list[tuple[int, int, list[tuple[int, ...]]]] = []
    for count in _row_counts(sizes, world, budget):
        rows, fullest = _deal(sizes, count)
        row = -(-fullest // step) * step if fullest <= budget else positions
        found.append((count * row, row, rows))
    best = min(found, default=(positions, 0, []))[0]
    # The fewest rows among those that waste about as little: long rows make large products.
    total, row, rows = next((item for item in found if item[0] <= 1.01 * best), (positions, 0, []))
    return (min(row, budget), rows) if total < positions else None


def _row_counts(sizes: list[int], world: int, budget: int) -> list[int]:
    """Return numbers of rows worth trying, in ascending order.

    These are the three smallest that can hold the samples, and the three that divide them most evenly (7 samples on 2 ranks
    leave a place empty in 2, 4 and 8 rows alike, 14 samples only in 4 and 8).
    """
    fewest = -(-sum(sizes) // (budget * world))
    counts = [world * each for each in range(fewest, -(-len(sizes) // world) + 1)]
    even = sorted(counts, key=lambda count: (count * -(-len(sizes) // count), count))
    return sorted({*counts[:3], *even[:3]})


def _deal(sizes: list[int], count: int) -> tuple[list[tuple[int, ...]], int]:
    """Deal samples to `count` rows, longest first, each to the emptiest row. Returns their slots, and the fullest row's tokens.

    With more rows than samples, samples are repeated as fill.
    """
    sizes = [sizes[slot % len(sizes)] for slot in range(max(count, len(sizes)))]
    heap = [(0, number) for number in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for slot in sorted(range(len(sizes)), key=lambda slot: (-sizes[slot], slot)):
        filled, number = heapq.heappop(heap)
        rows[number].append(slot)
        heapq.heappush(heap, (filled + sizes[slot], number))
    return [tuple(sorted(slots)) for slots in rows], max(filled for filled, _ in heap)
