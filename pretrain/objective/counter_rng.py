"""Random numbers as a pure function of (seed, stream, position): the same on every device and for any number of ranks.

In:  int64 seeds of the samples, a stream number for each purpose, a shape.
Out: uniform numbers on the seeds' device.

A counter is put through a 64-bit mixer (the finalizer of SplitMix64), so any element can be computed on its own, and there is no
generator state that ranks, restarts or devices could disagree about.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

RATIO, FLIP, MASK, DROP, SAMPLE = range(5)
"""Streams: flip ratios, bit flips, frame mask, condition drop, sampled bits."""

_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed integer
_MIX_1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX_2 = -7723592293110705685  # 0x94D049BB133111EB


def uniform(seeds_B: Tensor, stream: int, shape: Sequence[int]) -> Tensor:
    """Return float32 (B, *shape) in [0, 1), 24 random bits each.

    seeds_B: int64 (B). Elements of different seeds, streams or positions are independent for all practical purposes.
    """
    count = math.prod(shape)
    key_B1 = fold(seeds_B, -1 - stream).unsqueeze(1)
    words = _mix(key_B1 + torch.arange(1, (count + 1) // 2 + 1, device=seeds_B.device) * _GOLDEN)
    # One 64-bit word makes two numbers: the upper 24 bits of each of its halves.
    halves = torch.stack(((words >> 40) & 0xFFFFFF, (words >> 8) & 0xFFFFFF), dim=2)
    flat = halves.flatten(1)[:, :count].to(torch.float32) * (1.0 / (1 << 24))
    return flat.view(seeds_B.shape[0], *shape)


def fold(seeds_B: Tensor, number: int) -> Tensor:
    """Return new seeds, int64 (B): child number `number` (from 0) of each seed."""
    return _mix(_mix(seeds_B.to(torch.int64) + _GOLDEN) ^ _child(number))


def child_keys(numbers: Iterable[int]) -> Tensor:
    """Return what `fold_each` takes for these child numbers, int64 (N), on the CPU."""
    return torch.tensor([_child(number) for number in numbers], dtype=torch.int64)


def fold_each(seeds_B: Tensor, keys_N: Tensor) -> Tensor:
    """Return `fold` of each seed with each of N numbers, int64 (B, N). keys_N: from `child_keys`, on the seeds' device."""
    return _mix(_mix(seeds_B.to(torch.int64) + _GOLDEN).unsqueeze(1) ^ keys_N)


def _child(number: int) -> int:
    return number * 0x2545F4914F6CDD1D & 0x7FFFFFFFFFFFFFFF


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def _shift(x: Tensor, by: int) -> Tensor:
    """Shift right, filling with zeros: `>>` on int64 fills with the sign."""
    return (x >> by) & ((1 << (64 - by)) - 1)
