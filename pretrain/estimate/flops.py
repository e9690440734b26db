"""Floating-point operations: those that a step takes, and those that a device can do per second. Their ratio is the MFU.

In:  a model's shape and a token layout; a device or the name of a GPU.
Out: model FLOPs of a sample; peak FLOPs per second, from a table for GPUs, measured with a matrix product for CPUs.
"""

from __future__ import annotations

import time

import torch

from pretrain.attention.token_layout import Layout

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
"""Dense bf16 tensor-core peaks in FLOPs per second, from the makers' data sheets; the first name that matches is taken."""


class EstimateError(ValueError):
    """A job or a machine that cannot be estimated; the message says what to change."""


def training_flops(parameters: int, tokens: int, layers: int, width: int, pairs: int) -> float:
    """Return FLOPs of forward and backward: 6 per parameter and token, 12 x width per layer and attended pair of tokens.

    pairs: (query, key) pairs that the mask allows, summed over the samples. Recomputation does not count (MFU, not HFU).
    """
    return 6.0 * parameters * tokens + 12.0 * layers * width * pairs


def attended_pairs(layout: Layout, window: int = 0) -> int:
    """Return the (query, key) pairs that the mask (pretrain/attention/attention.py) allows in one sample without hidden frames.

    layout: its text without padding. window: latent frames of history; 0 = all.
    """
    pairs = layout.text * (layout.text + 1) // 2
    for frame in range(layout.frames):
        history = min(frame, window) if window else frame
        before = layout.text + history * layout.frame
        for begin, end in zip(layout.offsets, layout.offsets[1 : layout.scales_of(frame) + 1]):
            pairs += (end - begin) * (before + end)
    return pairs


def peak_flops(device: torch.device, dtype: torch.dtype) -> float:
    """Return the peak FLOPs per second of this device; measured on a CPU (about 0.3 s), NaN for an unknown GPU."""
    if device.type == "cpu":
        return _measured(dtype)
    name = torch.cuda.get_device_name(device)
    for known, peak in PEAKS.items():
        if known in name:
            return peak if dtype == torch.bfloat16 else peak / 2
    return float("nan")


def _measured(dtype: torch.dtype) -> float:
    size = 768
    a, b = torch.randn(size, size).to(dtype), torch.randn(size, size).to(dtype)
    best = float("inf")
    for _ in range(6):
        began = time.perf_counter()
        torch.mm(a, b)
        best = min(best, time.perf_counter() - began)
    return 2.0 * size**3 / best


def peak_of(name: str) -> float:
    """Return the bf16 peak of a GPU by its name. Raises EstimateError, which lists the known ones."""
    found = next((peak for known, peak in PEAKS.items() if known.lower() == name.lower()), None)
    if found is None:
        raise EstimateError(f"no peak is known for GPU `{name}`; known: {', '.join(PEAKS)}; or give it with --tflops")
    return found
