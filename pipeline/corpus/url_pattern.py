"""A pattern of an object store's names, and what has to be listed to find what it matches.

In:  a pattern without its protocol, such as bucket/2024-*/**/*.mp4; `*`, `?` and `[...]` stay inside of a folder's name, `**` does not.
Out: the folder to begin at, which folders may hold a match, which names are one: as fsspec's `glob` has it, which asks for all names
     at once.
"""

from __future__ import annotations

import re

from fsspec.utils import glob_translate

MAGIC = frozenset("*?[")
"""Characters that make an entry a pattern."""


class UrlPattern:
    """One pattern. Raises ValueError for `**` that is a part of a folder's name, which would mean nothing."""

    def __init__(self, pattern: str) -> None:
        parts = pattern.split("/")
        first = next(number for number, part in enumerate(parts) if MAGIC & set(part))
        self.root = "/".join(parts[:first])
        """The folder below which all matches are; "" where the bucket's name is a part of the pattern."""
        self.deep = "**" in parts
        """Whether matches may be at any depth."""
        self._name = re.compile(glob_translate(pattern))
        plain = parts.index("**") if self.deep else len(parts) - 1
        self._folders = {number: re.compile(glob_translate("/".join(parts[:number]))) for number in range(first + 1, plain + 1)}

    def matches(self, name: str) -> bool:
        """Whether a file's name matches."""
        return self._name.match(name) is not None

    def enters(self, folder: str) -> bool:
        """Whether a folder, named without the slash at its end, may hold a match, at any depth."""
        wanted = self._folders.get(folder.count("/") + 1)
        return self.deep if wanted is None else wanted.match(folder) is not None
