"""The C heap of a process that computes on a CPU: memory that a step freed stays with the process for the next step.

Called by: tokenizer.engine, pretrain.engine, pipeline.tokenizer_job, benchmarks; pipeline.ray_pool sets
ENVIRONMENT for its encoding workers.

glibc gives freed blocks of more than a few MB back to the kernel, and blocks of more than 32 MB always; the next step gets them
again page by page, each zeroed first. Every step allocates the same tensors, so this is lost time: 22 to 36 % of what encoding a
17 x 128 x 128 clip costs (widths 64 and 32), 5 to 8 % of a step of the transformer (docs/numerics.md). The price is that the
process keeps its peak, and that the peak is up to a third higher, since pieces between live blocks cannot be given back.
"""

from __future__ import annotations

import ctypes
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3)."""
NEVER, PAD = 2**31 - 1, 64 * 2**20
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(NEVER),
    "MALLOC_TOP_PAD_": str(PAD),
    "MALLOC_ARENA_MAX": "1",
}
"""The same for a process whose tensors are made in threads, to be set before it starts: a thread that has found its own arena keeps
it, and arenas of threads give their memory back."""


def keep_freed_memory() -> bool:
    """Make glibc keep what this process's main thread frees. Returns whether it does (False with another C library)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(parameter, value) == 1 for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, PAD))
    )
