"""Many small arrays of integers in one tensor, so that one copy takes them to the device.

In:  integer arrays of any shapes, on the host. Out: a view of each on the device, int32.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALIGN = 4
"""Each array begins at a multiple of so many integers: 16 bytes, as kernels that load vectors want it."""


@dataclass(frozen=True)
class Rows:
    """Where an array lies in the buffer, and its shape."""

    begin: int
    shape: tuple[int, ...]


class IndexBuffer:
    """Takes arrays, then is sent, then gives views."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._size = 0
        self._moved: Tensor | None = None

    def add(self, array: np.ndarray) -> Rows:
        """Take a copy of an array of integers."""
        rows = Rows(self._size, array.shape)
        self._arrays.append(array.reshape(-1).astype(np.int32))
        self._size += -(-array.size // ALIGN) * ALIGN
        self._arrays.append(np.zeros(self._size - rows.begin - array.size, dtype=np.int32))
        return rows

    def send(self, device: torch.device) -> None:
        """Copy everything to the device; on CUDA the host does not wait for it."""
        flat = torch.from_numpy(np.concatenate(self._arrays or [np.empty(0, dtype=np.int32)]))
        self._moved = flat.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else flat

    @property
    def nbytes(self) -> int:
        """Bytes of all arrays with the gaps between them."""
        return 4 * self._size

    def view(self, rows: Rows) -> Tensor:
        """Return an array on the device, int32, of the shape it had."""
        assert self._moved is not None, "send the buffer first"
        count = int(np.prod(rows.shape))
        return self._moved[rows.begin : rows.begin + count].view(rows.shape)
