"""DOC from pretrain/data/sample_order.py."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Split:
    """How one global batch falls to ranks and micro-batches."""

    micro_batch: int
    """Samples a rank runs at once: train.micro_batch, or less when the global batch has no use for it."""
    accumulation: int
    """Micro-batches a rank; the same on all ranks."""

    def slots(self, batch: int, rank: int, world: int) -> list[list[int]]:
        """Return the slots of each micro-batch of `rank`; a number of `batch` or more is a fill sample of weight 0."""
        mine = [rank + world * i for i in range(self.micro_batch * self.accumulation)]
        return [mine[i : i + self.micro_batch] for i in range(0, len(mine), self.micro_batch)]


def split(batch: int, micro_batch: int, world: int) -> Split:
    """Divide a global batch: equal shapes and counts on every rank, at any number of ranks."""
    each = -(-batch // world)
    accumulation = -(-each // micro_batch)
    return Split(micro_batch=-(-each // accumulation), accumulation=accumulation)


TEXT_MULTIPLE = 8
"""Text is padded to a multiple of this where nothing is packed, so that shapes are few."""


STEPS = 128
"""A row's length is a multiple of budget / STEPS, so that shapes are few and rounding costs under 1 / STEPS."""


@dataclass(frozen=True)
class Arrangement:
    """How one global batch falls to ranks and micro-batches."""

    micro_batches: tuple[tuple[tuple[int, ...], ...], ...]
    """By rank, by micro-batch: slots; a number of the batch's size or more is a fill sample of weight 0."""
    text: int
    """Text tokens a sample is padded to outside a packed row."""
    row: int
    """Tokens of the row that a micro-batch's samples share; 0 = not packed."""
    positions: int
    """Positions that all ranks compute together, padding included."""


def arrange(
    lengths: Sequence[int], video: int, longest: int, *, micro_batch: int, world: int, budget: int, above: float
) -> Arrangement:
    """Arrange a global batch: packed when that is allowed and the plain way would waste more than `above` of its positions.

    lengths: text tokens by slot. video: video tokens of a sample. longest: most text tokens a sample may have.
    budget: most tokens of a packed row; 0 = never pack.
    """
    batch = len(lengths)
    parts = split(batch, micro_batch, world)
    text = min(longest, -(-max(1, *lengths) // TEXT_MULTIPLE) * TEXT_MULTIPLE)
    positions = world * parts.micro_batch * parts.accumulation * (text + video)
    taken = [video + max(1, length) for length in lengths]
    if budget and max(taken) <= budget and sum(taken) < (1 - above) * positions:
        step = max(1, budget // STEPS)
        found: list[tuple[int, int, list[tuple[int, ...]]]] = []
        for count in _counts(taken, world, budget):
            rows, fullest = _deal(taken, count)
            row = -(-fullest // step) * step if fullest <= budget else positions
            found.append((count * row, row, rows))
        best = min(found, default=(positions, 0, []))[0]
        # The fewest rows among those that waste about as little: long rows make large products.
        total, row, rows = next((item for item in found if item[0] <= 1.01 * best), (positions, 0, []))
        if total < positions:
            ranks = tuple(tuple(rows[rank::world]) for rank in range(world))
            return Arrangement(ranks, text, min(row, budget), len(rows) * min(row, budget))
    plain = tuple(tuple(tuple(slots) for slots in parts.slots(batch, rank, world)) for rank in range(world))
    return Arrangement(plain, text, 0, positions)


def _counts(taken: list[int], world: int, budget: int) -> list[int]:
    """Return numbers of rows worth a try, fewest first: the first three that can hold the samples, and the three that
    part them most evenly (7 samples on 2 ranks leave a place empty in 2, 4 or 8 rows alike, 14 samples only in 4 or 8)."""
    fewest = -(-sum(taken) // (budget * world))
    counts = [world * each for each in range(fewest, -(-len(taken) // world) + 1)]
    even = sorted(counts, key=lambda count: (count * -(-len(taken) // count), count))
    return sorted({*counts[:3], *even[:3]})


def _deal(taken: list[int], count: int) -> tuple[list[tuple[int, ...]], int]:
    """Deal samples to `count` rows, longest first, each to the emptiest row. Returns their slots, and the fullest row's tokens.

    With more rows than samples, samples come again as fill.
    """
    taken = [taken[slot % len(taken)] for slot in range(max(count, len(taken)))]
    heap = [(0, number) for number in range(count)]
    rows: list[list[int]] = [[] for _ in range(count)]
    for slot in sorted(range(len(taken)), key=lambda slot: (-taken[slot], slot)):
        size, number = heapq.heappop(heap)
        rows[number].append(slot)
        heapq.heappush(heap, (size + taken[slot], number))
    return [tuple(sorted(slots)) for slots in rows], max(size for size, _ in heap)
