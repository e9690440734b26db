"""Copies of training state in host memory, and torch files that are hashed while they are written.

In:  nested state as DeepSpeed hands it over. Out: the copy, which is all that a save costs the training loop; the file, which a
     thread writes, with its size and sha256.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class _Hashed:
    """A binary file that hashes what is written to it, so that nothing has to be read back."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("wb")
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.digest.update(data)
        self.size += len(data)
        return self._file.write(data)

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        try:
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def copied(value: Any) -> Any:
    """Return a nested structure with every tensor copied to host memory and every enum member replaced by its value.

    Python 3.11.0 to 3.11.3 pickle an enum member as a call of `getattr`, which no safe reader admits.
    """
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        made = {key: copied(item) for key, item in value.items()}
        return made if type(value) is dict else type(value)(made)  # type: ignore[call-arg]
    if type(value) in (list, tuple):
        return type(value)(copied(item) for item in value)
    return value.value if isinstance(value, Enum) else value


def write_torch(path: Path, value: Any) -> tuple[Path, int, str]:
    """Write a torch file and sync it to disk; returns path, size and sha256. Raises OSError or RuntimeError."""
    file = _Hashed(path)
    try:
        torch.save(value, file)  # type: ignore[arg-type]
    finally:
        file.close()
    return path, file.size, file.digest.hexdigest()
