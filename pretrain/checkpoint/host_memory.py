"""Memory of the host for checkpoints: whether it is enough, and pages that are resident, or on disk, and of which a tensor is a view.

In:  sizes in bytes. Out: tensors of bytes, each with a storage of its own.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

SPARE = 1.2
"""Host memory is enough if this multiple of what checkpoints need is free."""


def lacks_memory(told: Sequence[tuple[str, int, int]]) -> dict[str, tuple[int, int]]:
    """Return (bytes wanted free, bytes free) of each host that has too little. told: host, need and free bytes of each rank."""
    found = {}
    for host in dict.fromkeys(name for name, _, _ in told):
        need = int(SPARE * sum(size for name, size, _ in told if name == host))
        free = min(size for name, _, size in told if name == host)
        if need > free:
            found[host] = need, free
    return found


class Mapping(mmap.mmap):
    """Pages of memory, which are unlocked before they go back to the system: when no tensor is left that is a view of them."""

    release: Callable[[], None] | None = None
    """Unlocks them; None: they were not locked."""

    def __del__(self) -> None:
        if self.release is not None and not sys.is_finalizing():
            self.release()


def mapped(size: int, folder: Path | None = None) -> Tensor:
    """Return `size` bytes of memory with a storage of its own: of zeros and resident, or on disk in `folder`. Raises OSError."""
    if not size:
        return torch.empty(0, dtype=torch.uint8)
    if folder is not None:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)  # a full disk is an error here; later it would be a signal
            return torch.frombuffer(mmap.mmap(file.fileno(), size), dtype=torch.uint8)
    return cleared(mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))


def cleared(memory: mmap.mmap) -> Tensor:
    """Return anonymous memory as a tensor of zeros, bytes, all of whose pages are resident and stay with this process."""
    if hasattr(mmap, "MADV_HUGEPAGE") and Path("/sys/kernel/mm/transparent_hugepage").is_dir():
        memory.madvise(mmap.MADV_HUGEPAGE)  # 512 times fewer pages to clear and to lock
    if hasattr(mmap, "MADV_DONTFORK"):
        memory.madvise(mmap.MADV_DONTFORK)  # or a fork would give this process other pages than those that the device writes to
    tensor = torch.frombuffer(memory, dtype=torch.uint8)
    ctypes.memset(tensor.data_ptr(), 0, len(memory))  # here, in a thread, and not during the first copy
    return tensor
