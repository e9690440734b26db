"""The configuration: one YAML file, changed by `section.key=value` overrides, validated whole.

In:  a YAML file and a list of overrides.
Out: a frozen `Config` whose sections are pydantic models.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config.errors import ConfigError, OverrideAt, duplicate_keys, explain, key_lines, origin, suggestion
from cluster.config.sections import SECTIONS, Section, section_class

_S = TypeVar("_S", bound=Section)


class Config(BaseModel):
    """A resolved configuration: every section validated, defaults filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    sections: dict[str, Any]
    """The model of each section by its name; `get` returns one with its type."""
    source: Path
    """The YAML file that it was read from."""

    def get(self, cls: type[_S]) -> _S:
        """Return the section that is an instance of `cls`. Raises KeyError when there is none."""
        for section in self.sections.values():
            if isinstance(section, cls):
                return section
        raise KeyError(f"{cls.__name__} is no configuration section")

    def replaced(self, section: Section) -> Config:
        """Return a configuration with `section` in the place of its like, such as one whose `auto` has been settled."""
        sections = {name: section if type(old) is type(section) else old for name, old in self.sections.items()}
        return Config(sections=sections, source=self.source)

    def plain(self) -> dict[str, Any]:
        """Return all sections as plain JSON/YAML values, in the order of SECTIONS."""
        return {name: section.model_dump(mode="json") for name, section in self.sections.items()}

    def yaml(self) -> str:
        """Return YAML text that `load` reads back to an equal Config."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)

    def digest(self, *names: str) -> str:
        """Return the sha256 (hex) of the named sections, or of all; the order of keys does not matter."""
        chosen = {k: v for k, v in self.plain().items() if not names or k in names}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read a YAML file, apply overrides and validate the result.

    overrides: `section.key=value` strings, the value in YAML syntax; a list item is addressed by its index
    (`curriculum.stages.0.steps=10`).
    Raises ConfigError, which names the file, the line, the key and the nearest known key.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path}: cannot read the configuration: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start})") from error
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {error}") from error
    for key, first, again in duplicate_keys(node):
        raise ConfigError(f"{path}:{again}: `{key}` is already set on line {first}; keep one of the two")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: the configuration must be a mapping of sections, found {type(data).__name__}")
    lines = key_lines(node) if node is not None else {}
    given: OverrideAt = {}
    for override in overrides:
        given[_apply_override(data, override)] = override
    for key in data:
        if key not in SECTIONS:
            where = origin(path, lines, given, (key,))
            raise ConfigError(f"{where}: unknown section `{key}`{suggestion(str(key), list(SECTIONS))}")
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        cls = section_class(name)
        value = data.get(name)
        try:
            sections[name] = cls.model_validate({} if value is None else value)
        except ValidationError as error:
            raise ConfigError(explain(path, lines, given, name, cls, error)) from error
    return Config(sections=sections, source=path)


def _apply_override(data: dict[str, Any], override: str) -> tuple[Any, ...]:
    """Write one override into `data` and return the path of its key."""
    dotted, equals, text = override.partition("=")
    keys = dotted.split(".")
    if not equals or len(keys) < 2 or not all(keys):
        raise ConfigError(f"override `{override}`: write it as section.key=value")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"override `{override}`: the value is not valid YAML: {error}") from error
    if keys[0] not in SECTIONS:
        raise ConfigError(f"override `{override}`: unknown section `{keys[0]}`{suggestion(keys[0], list(SECTIONS))}")
    here: Any = data
    place: list[Any] = []
    for depth, key in enumerate(keys[:-1]):
        if isinstance(here, list):
            place.append(_index(here, key, override))
            here = here[place[-1]]
        elif isinstance(here, dict):
            place.append(key)
            if here.get(key) is None:
                here[key] = {}
            here = here[key]
        else:
            raise ConfigError(f"override `{override}`: `{'.'.join(keys[:depth])}` is a plain value and has no keys")
    if isinstance(here, list):
        index = _index(here, keys[-1], override)
        here[index] = value
        return (*place, index)
    if isinstance(here, dict):
        here[keys[-1]] = value
        return (*place, keys[-1])
    raise ConfigError(f"override `{override}`: `{'.'.join(keys[:-1])}` is a plain value and has no keys")


def _index(items: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"override `{override}`: `{key}` is not an index into a list of {len(items)} (counted from 0)")
    return int(key)
