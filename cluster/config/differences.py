"""Which keys differ between two nested configurations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any


def flat(plain: Mapping[str, Any], where: str = "") -> dict[str, Any]:
    """Return nested mappings as one with dotted keys; lists and empty mappings count as values."""
    found: dict[str, Any] = {}
    for key, value in plain.items():
        name = f"{where}.{key}" if where else str(key)
        if isinstance(value, Mapping) and value:
            found.update(flat(value, name))
        else:
            found[name] = value
    return found


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys whose values differ, sorted. A missing key counts as null."""
    first, second = flat(old), flat(new)
    return sorted(key for key in {*first, *second} if first.get(key) != second.get(key))


def differences(old: Mapping[str, Any], new: Mapping[str, Any]) -> Iterator[str]:
    """Yield one line `key: old -> new` for each value that differs."""
    first, second = flat(old), flat(new)
    for key in changed_keys(old, new):
        yield f"{key}: {json.dumps(first.get(key))} -> {json.dumps(second.get(key))}"
