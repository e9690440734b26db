"""DOC from cluster/config/loader.py."""

from __future__ import annotations

from typing import Any

import yaml

from cluster.config.errors import ConfigError, nearest
from cluster.config.sections import SECTIONS


def _apply(data: dict[str, Any], override: str) -> tuple[Any, ...]:
    """Write one override into `data` and return its place."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"override `{override}`: write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override `{override}`: the value is not valid YAML: {error}") from error
    if keys[0] not in SECTIONS:
        raise ConfigError(f"override `{override}`: unknown section `{keys[0]}`{nearest(keys[0], list(SECTIONS))}")
    here: Any = data
    place: list[Any] = []
    for depth, key in enumerate(keys[:-1]):
        if isinstance(here, list):
            place.append(_item(here, key, override))
            here = here[place[-1]]
        elif isinstance(here, dict):
            place.append(key)
            if here.get(key) is None:
                here[key] = {}
            here = here[key]
        else:
            raise ConfigError(f"override `{override}`: `{'.'.join(keys[:depth])}` holds a plain value, not keys")
    if isinstance(here, list):
        number = _item(here, keys[-1], override)
        here[number] = value
        return (*place, number)
    if isinstance(here, dict):
        here[keys[-1]] = value
        return (*place, keys[-1])
    raise ConfigError(f"override `{override}`: `{'.'.join(keys[:-1])}` holds a plain value, not keys")


def _item(items: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"override `{override}`: `{key}` is no item of a list of {len(items)} (items count from 0)")
    return int(key)
