"""Copies of training state in host memory, and files that are hashed as they are written.

Called by: checkpoint.py. The copy is what a save costs the training loop; the file is written by a thread.
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
    """A binary file that hashes what goes through it, so that no byte is read back."""

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
    """Return a nested structure with every tensor copied to host memory and every enumeration member as its plain value.

    Python 3.11.0 to 3.11.3 pickle a member as a call of `getattr`, which no safe reader lets through.
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
    """Write a torch file and wait for the disk; returns path, size and sha256. Raises OSError or RuntimeError."""
    file = _Hashed(path)
    try:
        torch.save(value, file)  # type: ignore[arg-type]
    finally:
        file.close()
    return path, file.size, file.digest.hexdigest()
