"""Access to object stores and other network file systems, retried when the connection fails."""

from __future__ import annotations

import http.client
import importlib
import importlib.util
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from fsspec.exceptions import FSTimeoutError

_TRIES = 6
_PAUSE = 0.2
"""Seconds before the second try; each later pause is twice as long."""
_T = TypeVar("_T")


class BrokenTransfer(OSError):
    """A connection that broke before the whole file had arrived."""


def _network_errors() -> tuple[type[Exception], ...]:
    """Return what a failing connection raises: some of the libraries under fsspec have error classes of their own."""
    found: list[type[Exception]] = [OSError, http.client.HTTPException, FSTimeoutError]
    for module, name in (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
    ):
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


NETWORK = _network_errors()
"""Errors of a failing connection."""
UNREACHABLE: tuple[type[Exception], ...] = (*NETWORK, tarfile.TarError)
"""Errors of a file inside a remote archive that cannot be read."""


def is_url(name: str) -> bool:
    """Return whether `name` is an fsspec URL rather than a local path."""
    return "://" in name


def retried(call: Callable[[], _T]) -> _T:
    """Return `call()`, retried with growing pauses while the connection fails or is throttled; a missing file is not retried."""
    for attempt in range(_TRIES):
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except NETWORK:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def download(filesystem: Any, source: str, target: Path) -> None:
    """Copy one file of an fsspec file system to a local path. Raises BrokenTransfer if less than the whole file arrives."""
    filesystem.get_file(source, str(target))
    size = filesystem.size(source)
    if size is not None and target.stat().st_size != size:
        raise BrokenTransfer(f"the connection broke after {target.stat().st_size} of {size} bytes")
