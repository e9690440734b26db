"""DOC from pipeline/shards/layout.py."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


def flat(plain: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return nested mappings as one, its keys joined by dots; lists and empty mappings are values."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping) and value:
            found.update(flat(value, name))
        else:
            found[name] = value
    return found


def differences(a: Any, b: Any, where: str = "") -> Iterator[str]:
    """Give one line `key: a -> b` for each value that differs."""
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        for key in sorted({*a, *b}, key=str):
            yield from differences(a.get(key), b.get(key), f"{where}.{key}" if where else str(key))
    elif a != b:
        yield f"{where}: {json.dumps(a)} -> {json.dumps(b)}"
