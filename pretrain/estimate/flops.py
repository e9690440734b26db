"""Floating-point operations of a step, and what the machine could do: model FLOPs utilisation (MFU).

In:  model shape and sequence length; the device.
Out: FLOPs a sample; peak FLOPs a second (from a table on GPUs, measured with a matrix product on CPUs).
Called by: train.py, plan.py, `videoar bench train`.
"""

from __future__ import annotations


def training_flops(parameters: int, tokens: int, layers: int, width: int, pairs: int) -> float:
    """Return FLOPs of forward and backward: 6 a parameter a token, and 12 x width a layer for each attended pair of tokens.

    pairs: (query, key) pairs that the mask allows, summed over the samples. Recomputation does not count (MFU, not HFU).
    """
    return 6.0 * parameters * tokens + 12.0 * layers * width * pairs


def causal_pairs(text: int, frames: int, scales: list[int], window: int = 0) -> int:
    """Return the attended pairs of one sample under VideoAR's mask.

    Text is causal; a token of scale k sees the text, the frames before its own (all, or `window` of them) and the scales
    up to and including its own. scales: tokens of each scale of a frame.
    """
    frame, pairs, seen = sum(scales), text * (text + 1) // 2, 0
    inside = []
    for count in scales:
        seen += count
        inside.append(count * seen)
    for number in range(frames):
        before = min(number, window) if window else number
        pairs += sum(inside) + frame * (text + before * frame)
    return pairs
