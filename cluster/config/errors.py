"""The error of a configuration that cannot be used: which line or override is wrong, and what was probably meant.

In:  the parsed YAML nodes, the overrides, pydantic's errors.
Out: one line of text for each error.
"""

from __future__ import annotations

import difflib
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

LineOf = Mapping[tuple[Any, ...], int]
"""Path of each key or list item -> its line in the file, from 1."""
OverrideAt = dict[tuple[Any, ...], str]
"""Path of each overridden key -> the override that set it."""


class ConfigError(ValueError):
    """A configuration that cannot be used; the message names the file, the line, the key and the fix."""


def key_lines(node: yaml.Node, prefix: tuple[Any, ...] = ()) -> dict[tuple[Any, ...], int]:
    """Return the line, from 1, of each key and list item under `node`."""
    found = {prefix: node.start_mark.line + 1}
    if isinstance(node, yaml.MappingNode):
        for key_node, value_node in node.value:
            where = (*prefix, key_node.value)
            found.update(key_lines(value_node, where))
            found[where] = key_node.start_mark.line + 1
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            found.update(key_lines(item, (*prefix, number)))
    return found


def duplicate_keys(node: yaml.Node | None) -> Iterator[tuple[str, int, int]]:
    """Yield each key that occurs twice in one mapping, with both lines; YAML's own reader silently keeps the last one."""
    if isinstance(node, yaml.MappingNode):
        seen: dict[str, int] = {}
        for key_node, value_node in node.value:
            line = key_node.start_mark.line + 1
            if isinstance(key_node, yaml.ScalarNode):
                if key_node.value in seen and key_node.value != "<<":
                    yield key_node.value, seen[key_node.value], line
                seen[key_node.value] = line
            yield from duplicate_keys(value_node)
    elif isinstance(node, yaml.SequenceNode):
        for item in node.value:
            yield from duplicate_keys(item)


def origin(path: Path, lines: LineOf, given: OverrideAt, loc: tuple[Any, ...]) -> str:
    """Return the override, or `file:line`, that the value at `loc` comes from."""
    while loc and loc not in lines and loc not in given:
        loc = loc[:-1]
    return f"override `{given[loc]}`" if loc in given else f"{path}:{lines.get(loc, 1)}"


def suggestion(key: str, known: Sequence[str]) -> str:
    """Return the end of a message about an unknown key: the closest known key, or all of them."""
    close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    return f"; did you mean `{close[0]}`?" if close else f"; known keys: {', '.join(known)}"


def _members(annotation: Any) -> list[Any]:
    """Return the members of a union without None; for any other annotation, that annotation alone."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        return [member for member in typing.get_args(annotation) if member is not types.NoneType]
    return [annotation]


def _follow(cls: type[BaseModel], loc: Sequence[Any]) -> tuple[tuple[Any, ...], list[str]]:
    """Follow the location of a pydantic error.

    Returns the location as the file writes it (pydantic adds the chosen member of a union) and the fields known there.
    """
    here: Any = cls
    place: list[Any] = []
    for part in loc:
        members = _members(here)
        if len(members) > 1:
            here = next((member for member in members if getattr(member, "__name__", None) == part), members[0])
            continue
        place.append(part)
        fields = getattr(members[0], "model_fields", {})
        arguments = [argument for argument in typing.get_args(members[0]) if argument is not Ellipsis]
        if part in fields:
            here = fields[part].annotation
        elif isinstance(part, int) and part < len(arguments):
            here = arguments[part]
        else:
            here = arguments[-1] if arguments else None
    known = sorted({name for member in _members(here) for name in getattr(member, "model_fields", {})})
    return tuple(place), known


def explain(path: Path, lines: LineOf, given: OverrideAt, name: str, cls: type[BaseModel], error: ValidationError) -> str:
    """Return one line for each error in the section `name`, whose model is `cls`."""
    messages = []
    items = error.errors(include_url=False)
    places = [item["loc"] for item in items]
    for item in items:
        if any(len(place) > len(item["loc"]) and place[: len(item["loc"])] == item["loc"] for place in places):
            continue  # it follows from a more precise one, such as a list that is too short without its invalid items
        unknown = item["type"] == "extra_forbidden"
        loc, known = _follow(cls, item["loc"][:-1] if unknown else item["loc"])
        if unknown:
            loc = (*loc, item["loc"][-1])
        dotted = ".".join(str(part) for part in (name, *loc))
        where = origin(path, lines, given, (name, *loc))
        if unknown:
            messages.append(f"{where}: unknown key `{dotted}`{suggestion(str(loc[-1]), known)}")
        else:
            messages.append(f"{where}: `{dotted}`: {item['msg']} (found {item.get('input')!r:.80})")
    return "\n".join(messages)


def first_problem(error: ValidationError) -> str:
    """Return in one line the first thing that pydantic found wrong with values that no user wrote: key and reason."""
    first = error.errors(include_url=False)[0]
    return f"`{'.'.join(map(str, first['loc']))}`: {first['msg']}"
