"""DOC from pretrain/estimate/flops.py."""

from __future__ import annotations

import time
from dataclasses import dataclass

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


class PlanError(ValueError):
    """A job or machine that no plan can be made for; the message names the mend."""


@dataclass(frozen=True)
class Machine:
    """What is to be rented."""

    gpus: int
    memory_gb: float
    """GB (1e9 bytes) a GPU."""
    peak: float
    """Dense bf16 FLOPs a second of a GPU."""
    mfu: float = 0.4
    """Share of the peak that model FLOPs are expected to reach."""
    link_gb: float = 50.0
    """GB a second that a GPU can send to others (50 = a 400 Gbit/s port a GPU)."""


def peak_of(name: str) -> float:
    """Return the bf16 peak of a GPU by name. Raises PlanError naming the known ones."""
    found = next((peak for known, peak in PEAKS.items() if known.lower() == name.lower()), None)
    if found is None:
        raise PlanError(f"no peak is known for GPU `{name}`; known: {', '.join(PEAKS)}; or give it with --tflops")
    return found
