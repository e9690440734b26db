"""The C heap of a training process on a CPU: memory that a step freed stays with the process for the next step.

Called by: tokenizer.engine, pretrain.engine, benchmarks.

glibc gives freed blocks of more than a few MB back to the kernel, and the next step gets them again page by page, each zeroed
first. Every step allocates the same tensors, so this is lost time: 42,000 page faults and 5 to 8 % of a step of the transformer
(docs/numerics.md). The price is that the process keeps its peak.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
"""Parameters of mallopt(3)."""
LARGEST = 32 * 2**20
"""Largest block that glibc keeps on its heap: the limit of M_MMAP_THRESHOLD on 64-bit machines."""


def keep_freed_memory() -> bool:
    """Make glibc keep what is freed. Returns whether it does (False with another C library)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(parameter, value) == 1
        for parameter, value in ((M_MMAP_THRESHOLD, LARGEST), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2 * LARGEST))
    )
