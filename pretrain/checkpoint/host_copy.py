"""Nested training state as host tensors, and files that are hashed while they are written.

In:  nested state as DeepSpeed hands it over. Out: the same with host tensors in place of its own; the files, which threads write,
     with their size and sha256.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from enum import Enum
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

LARGE = 2**20
"""Bytes from which on a piece is hashed while it is written."""
Written = tuple[Path, int, str]
"""A file, its size and its sha256."""


class _Hashed:
    """A binary file that hashes what is written to it, so that nothing has to be read back. Large pieces are hashed by a thread."""

    def __init__(self, path: Path) -> None:
        self._file, self._thread = path.open("wb"), ThreadPoolExecutor(1)
        self.digest, self.size = hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        self.size += len(data)
        if len(data) < LARGE:
            self.digest.update(data)
            return self._file.write(data)
        hashing = self._thread.submit(self.digest.update, data)
        try:
            return self._file.write(data)
        finally:
            hashing.result()  # `data` is the caller's again when this returns

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        try:
            self._thread.shutdown()
            self._file.flush()
            os.fsync(self._file.fileno())
        finally:
            self._file.close()


def on_host(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor in host memory."""
    return tensor.detach().to("cpu", copy=True)


def copied(value: Any, copy: Callable[[Tensor], Tensor] = on_host) -> Any:
    """Return a nested structure with a copy in place of every tensor, and every enum member replaced by its value.

    Python 3.11.0 to 3.11.3 pickle an enum member as a call of `getattr`, which no safe reader admits.
    """
    if isinstance(value, Tensor):
        return copy(value)
    if isinstance(value, Mapping):
        made = {key: copied(item, copy) for key, item in value.items()}
        return made if type(value) is dict else type(value)(made)  # type: ignore[call-arg]
    if type(value) in (list, tuple):
        return type(value)(copied(item, copy) for item in value)
    return value.value if isinstance(value, Enum) else value


def write_torch(path: Path, value: Any) -> Written:
    """Write a torch file and sync it to disk; returns path, size and sha256. Raises OSError or RuntimeError."""
    file = _Hashed(path)
    try:
        torch.save(value, file)  # type: ignore[arg-type]
    except RuntimeError as error:
        # torch's own complaint about the length of the file hides why a write failed.
        if isinstance(error.__context__, OSError):
            raise error.__context__ from None
        raise
    finally:
        file.close()
    return path, file.size, file.digest.hexdigest()


def write_slices(path: Path, slices: Mapping[str, Tensor]) -> Written:
    """Write flat float32 host tensors as a safetensors file and sync it to disk; returns path, size and sha256. Raises OSError.

    The bytes are those of `safetensors.torch.save_file`, which would first copy every tensor while it holds up Python.
    """
    header, end = dict[str, Any](), 0
    for name in sorted(slices):
        begin, end = end, end + slices[name].nbytes
        header[name] = {"dtype": "F32", "shape": list(slices[name].shape), "data_offsets": [begin, end]}
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    file = _Hashed(path)
    try:
        file.write(len(text).to_bytes(8, "little") + text)
        for name in sorted(slices):
            if slices[name].numel():
                file.write(slices[name].numpy().data.cast("B"))
    finally:
        file.close()
    return path, file.size, file.digest.hexdigest()
