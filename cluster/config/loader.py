"""The configuration: one YAML file, validated whole, overridden by `section.key=value`.

In:  a YAML file and a list of overrides.
Out: a frozen `Config` whose sections are pydantic models.
Called by: every command; each section model stands beside the code that it configures.

`cluster` imports none of the other packages, so the sections are named here as dotted paths and
resolved when a file is read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from cluster.config.errors import ConfigError, Given, duplicates, explain, key_lines, nearest, where_is
from cluster.config.overrides import _apply
from cluster.config.sections import SECTIONS, Section, section_class

_S = TypeVar("_S", bound=Section)


class Config(BaseModel):
    """The resolved whole: every section validated, defaults filled in."""

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    sections: dict[str, Any]
    source: Path

    def get(self, cls: type[_S]) -> _S:
        """Return the section that `cls` models. Raises KeyError when `cls` is no section."""
        for section in self.sections.values():
            if isinstance(section, cls):
                return section
        raise KeyError(f"{cls.__name__} is no configuration section")

    def plain(self) -> dict[str, Any]:
        """Return the whole as plain JSON/YAML values, sections in their fixed order."""
        return {name: section.model_dump(mode="json") for name, section in self.sections.items()}

    def yaml(self) -> str:
        """Return the whole as YAML text that `load` reads back to an equal Config."""
        return yaml.safe_dump(self.plain(), sort_keys=False, allow_unicode=True)

    def digest(self, *names: str) -> str:
        """Return the sha256 (hex) over the named sections (all without names), independent of key order."""
        chosen = {k: v for k, v in self.plain().items() if not names or k in names}
        return hashlib.sha256(json.dumps(chosen, sort_keys=True).encode()).hexdigest()


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, override and validate a configuration.

    path: YAML file. overrides: `section.key=value` strings, the value in YAML syntax; a list item is
    addressed by its number (`curriculum.stages.0.steps=10`).
    Raises ConfigError, which names file, line, key and the nearest known key.
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
    for key, first, again in duplicates(node):
        raise ConfigError(f"{path}:{again}: `{key}` is already set on line {first}; keep one of the two")
    if data is None:
        data = {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path}:1: the configuration must be a mapping of sections, found {type(data).__name__}")
    lines = key_lines(node) if node is not None else {}
    given: Given = {}
    for override in overrides:
        given[_apply(data, override)] = override
    for key in data:
        if key not in SECTIONS:
            raise ConfigError(
                f"{where_is(path, lines, given, (key,))}: unknown section `{key}`{nearest(str(key), list(SECTIONS))}"
            )
    sections: dict[str, Any] = {}
    for name in SECTIONS:
        cls = section_class(name)
        value = data.get(name)
        try:
            sections[name] = cls.model_validate({} if value is None else value)
        except ValidationError as error:
            raise ConfigError(explain(path, lines, given, name, cls, error)) from error
    return Config(sections=sections, source=path)
