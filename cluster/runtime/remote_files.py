"""Calls to object stores and other network file systems, tried again when the connection fails."""

from __future__ import annotations

import http.client
import importlib
import importlib.util
import tarfile
import time
from collections.abc import Callable
from typing import TypeVar

from fsspec.exceptions import FSTimeoutError

_TRIES = 6


_PAUSE = 0.2


def _network_errors() -> tuple[type[Exception], ...]:
    """What a failing connection raises: the libraries below fsspec have families of their own, where they are installed."""
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


UNREACHABLE: tuple[type[Exception], ...] = (*NETWORK, tarfile.TarError)


_T = TypeVar("_T")


def is_url(name: str) -> bool:
    """Whether `name` is an fsspec URL rather than a local path."""
    return "://" in name


def retried(call: Callable[[], _T]) -> _T:
    """Call until it works: throttled and dropped connections are tried again with growing pauses; a missing file is not."""
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
