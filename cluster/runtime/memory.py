"""Memory of the host: how much is free; and glibc's heap, where memory that one step frees stays with the process for the next step.

glibc returns freed blocks of more than a few MB to the kernel, and blocks of more than 32 MB always; the next step gets them back
page by page, each zeroed first. Every step allocates the same tensors, so that time is lost: 22 to 36 % of the cost of encoding a
17 x 128 x 128 clip (widths 64 and 32), 5 to 8 % of a training step of the transformer (docs/numerics.md). In exchange the process
keeps its peak memory, and the peak is up to a third higher, since free pieces between blocks in use cannot be returned.
"""

from __future__ import annotations

import ctypes
import platform
from pathlib import Path

import psutil

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX = -1, -2, -4
"""Parameters of mallopt(3)."""
NEVER, PAD = 2**31 - 1, 64 * 2**20
"""Free memory, in bytes, that triggers a return to the kernel; extra bytes of each request to it."""
ENVIRONMENT = {
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(NEVER),
    "MALLOC_TOP_PAD_": str(PAD),
    "MALLOC_ARENA_MAX": "1",
}
"""The same settings for a process that allocates in threads, to be set before it starts: a thread keeps the arena that it has once
found, and the arenas of threads return their memory."""


def free_memory(group: Path = Path("/sys/fs/cgroup")) -> int:
    """Return the bytes of host memory that this process could still take: of the machine, and of its container's limit.

    group: folder of the container's control group (version 2).
    """
    free, limit = int(psutil.virtual_memory().available), group / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        statistics = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / "memory.current").read_text()) - int(statistics["inactive_file"])
        free = min(free, int(text) - used)
    return free


def keep_freed_memory() -> bool:
    """Make glibc keep what the main thread of this process frees. Returns whether that worked (False with another C library)."""
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return all(
        mallopt(parameter, value) == 1 for parameter, value in ((M_MMAP_MAX, 0), (M_TRIM_THRESHOLD, NEVER), (M_TOP_PAD, PAD))
    )
