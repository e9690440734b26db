"""Floating-point operations of a step, and what the machine could do: model FLOPs utilisation (MFU).

In:  model shape and sequence length; the device.
Out: FLOPs a sample; peak FLOPs a second (from a table on GPUs, measured with a matrix product on CPUs).
Called by: train.py, plan.py, `videoar bench train`.
"""

from __future__ import annotations

import time

import torch

PEAKS = {
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H800": 989e12,
    "A100": 312e12,
    "A800": 312e12,
    "B200": 2250e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "4090": 165e12,
}
"""Dense bf16 tensor-core peaks, FLOPs a second, from the makers' data sheets; the first name that fits counts."""


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


def peak_flops(device: torch.device, dtype: torch.dtype, threads: int) -> float:
    """Return FLOPs a second that this device can reach; measured on a CPU (about 0.3 s), NaN for an unknown GPU."""
    if device.type == "cpu":
        return _measured(dtype, threads)
    name = torch.cuda.get_device_name(device)
    for known, peak in PEAKS.items():
        if known in name:
            return peak if dtype == torch.bfloat16 else peak / 2
    return float("nan")


def _measured(dtype: torch.dtype, threads: int) -> float:
    size = 768
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best
