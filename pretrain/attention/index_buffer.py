"""Many small arrays of integers on the device by one copy, and long ones made there from their spans.

In:  integer arrays of any shapes, and lists of spans of consecutive integers, on the host.
Out: a view of each on the device, int32. A list of spans is one after the other all integers of its spans.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

ALIGN = 4
"""Each array begins at a multiple of so many integers: 16 bytes, as kernels that load vectors want it."""
Span = tuple[int, int]
"""Begin and end of consecutive integers."""


@dataclass(frozen=True)
class Rows:
    """Where an array lies, and its shape."""

    begin: int
    shape: tuple[int, ...]
    spanned: bool
    """It is made of spans, on the device."""


class IndexBuffer:
    """Takes arrays and spans, then is sent, then gives views."""

    def __init__(self) -> None:
        self._arrays: list[np.ndarray] = []
        self._size = 0
        self._spans: list[Span] = []
        self._spanned = 0
        self._sent: dict[bool, Tensor] = {}

    def add(self, array: np.ndarray) -> Rows:
        """Take a copy of an array of integers."""
        rows = Rows(self._size, array.shape, spanned=False)
        self._arrays.append(array.reshape(-1).astype(np.int32))
        self._size += -(-array.size // ALIGN) * ALIGN
        self._arrays.append(np.zeros(self._size - rows.begin - array.size, dtype=np.int32))
        return rows

    def add_spans(self, spans: Sequence[Span]) -> Rows:
        """Take the integers of spans, one after the other."""
        count = sum(end - begin for begin, end in spans)
        rows = Rows(self._spanned, (count,), spanned=True)
        gap = -count % ALIGN
        self._spans += [*spans, (0, gap)]
        self._spanned += count + gap
        return rows

    def send(self, device: torch.device) -> None:
        """Copy everything to the device; on CUDA the host does not wait for it."""
        begins, ends = np.asarray(self._spans, dtype=np.int32).reshape(-1, 2).T
        lengths = ends - begins
        # The integer at place i of all spans is i, moved by what is the same for all of a span.
        moved = begins - (np.cumsum(lengths, dtype=np.int32) - lengths)
        flat = torch.from_numpy(np.concatenate([*self._arrays, moved, lengths]).astype(np.int32, copy=False))
        flat = flat.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else flat
        shift, count = flat[self._size :].view(2, -1)
        integers = torch.repeat_interleave(shift, count, output_size=self._spanned)
        integers += torch.arange(self._spanned, dtype=torch.int32, device=device)
        self._sent = {False: flat, True: integers}

    @property
    def nbytes(self) -> int:
        """Bytes on the device, with the gaps between the arrays."""
        return 4 * (self._size + self._spanned + 2 * len(self._spans))

    def view(self, rows: Rows) -> Tensor:
        """Return an array on the device, int32, of the shape it had."""
        assert self._sent, "send the buffer first"
        count = int(np.prod(rows.shape))
        return self._sent[rows.spanned][rows.begin : rows.begin + count].view(rows.shape)
