"""All files below a prefix of an object store, listed by many connections at once.

In:  an fsspec file system and a prefix in it.
Out: the names of all files, sorted as one listing of the whole prefix would be.

A store gives a thousand names a request, one request after the other, but many prefixes at the same time. Folders are opened level by
level until there are enough of them, and then listed side by side; each request is tried again by itself.
"""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from cluster.runtime.remote_files import retried

CONNECTIONS = 16
"""Listings at a time."""
ENOUGH = 4 * CONNECTIONS
"""Folders below which one more level is opened."""
DEEPEST = 4
"""Levels that are opened at most: names may lie one in a folder."""


def find(filesystem: Any, root: str) -> list[str]:
    """Return the files below `root`, sorted; `root` itself where it is a file. Raises what the store raises."""
    filesystem.invalidate_cache()  # what an earlier listing of this process has found may be out of date
    with ThreadPoolExecutor(CONNECTIONS) as pool:
        files: list[str] = []
        folders = [root]
        for level in range(DEEPEST):
            if level and (len(folders) >= ENOUGH or not folders):
                break
            opened = pool.map(lambda folder: _entries(filesystem, folder), folders)
            files, folders = _split(zip(folders, opened, strict=True), files)
        for found in pool.map(lambda folder: retried(lambda: filesystem.find(folder)), folders):
            files += found
    # A marker of an empty folder is no file.
    return sorted(name for name in files if not name.endswith("/"))


def _entries(filesystem: Any, folder: str) -> list[dict[str, Any]]:
    try:
        found: list[dict[str, Any]] = retried(lambda: filesystem.ls(folder, detail=True))
    except FileNotFoundError:
        return []
    return found


def _split(opened: Iterable[tuple[str, list[dict[str, Any]]]], files: list[str]) -> tuple[list[str], list[str]]:
    """Divide what some folders hold into files, added to those known, and folders."""
    folders = []
    for folder, entries in opened:
        for entry in entries:
            name = str(entry["name"])
            if entry["type"] != "directory":
                files.append(name)
            elif name.rstrip("/") != folder.rstrip("/"):  # some stores list a folder's own marker
                folders.append(name.rstrip("/"))
    return files, folders
