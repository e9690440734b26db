"""All files below a prefix of an object store, listed by many connections at once.

In:  an fsspec file system and a prefix in it, or a pattern (url_pattern.py); what an interrupted listing has kept (spilled_names.py).
Out: the names of all files, streamed, sorted as one listing of the whole prefix would be.

A store gives a thousand names a request, one request after the other, but many prefixes at the same time. Folders are opened level by
level until there are enough of them, and then listed side by side; each request is tried again by itself. What a folder holds goes to
disk at once: a listing that is interrupted asks only for folders that it has not finished, and in memory are the names of the folders
that are being listed, at most one per connection. Of a folder in S3 that is large (store_pages.py), every 65,536 names go to disk.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import count
from pathlib import Path
from typing import Any

from cluster.runtime.progress import ProgressBar
from cluster.runtime.remote_files import retried
from pipeline.corpus.spilled_names import Entry, SpilledNames
from pipeline.corpus.store_pages import OutOfOrder, pages_of, without_times
from pipeline.corpus.url_pattern import UrlPattern

CONNECTIONS = 16
"""Listings at a time."""
ENOUGH = 4 * CONNECTIONS
"""Folders below which one more level is opened."""
DEEPEST = 4
"""Levels that are opened at most: names may lie one in a folder."""
OPENED, BELOW = "ls", "find"
"""What is kept of a folder: the files and folders in it, or all files below it."""


def find(filesystem: Any, root: str, kept: SpilledNames | None = None, pattern: UrlPattern | None = None) -> Iterator[str]:
    """Yield the files below `root`, sorted; `root` itself where it is a file. Raises what the store raises.

    kept: where names wait, and those of an interrupted listing are; a temporary folder if it is not given.
    pattern: its matches alone, and no folder is listed that cannot hold one; `root` is the pattern's.
    """
    with contextlib.ExitStack() as held:
        if kept is None:
            kept = SpilledNames(Path(held.enter_context(tempfile.TemporaryDirectory(prefix="listing-"))))
        listed = without_times(filesystem)
        with _uncached(listed):
            opened = _list(listed, root, kept, pattern)
        found = _files(kept, root, opened, pattern)
        yield from found if pattern is None else filter(pattern.matches, found)


@contextlib.contextmanager
def _uncached(filesystem: Any) -> Iterator[None]:
    """Turn off the memory of a file system: what it holds may be out of date, and what is found now need not stay there."""
    filesystem.invalidate_cache()
    cache: Any = getattr(filesystem, "dircache", None)
    before = getattr(cache, "use_listings_cache", None)
    if before is None:
        yield
        return
    cache.use_listings_cache = False
    try:
        yield
    finally:
        cache.use_listings_cache = before


def _list(filesystem: Any, root: str, kept: SpilledNames, pattern: UrlPattern | None) -> set[str]:
    """Put on disk what every folder holds. Returns the folders that were opened; of the others all files below are there."""

    lock = threading.Lock()

    def said(names: int) -> None:
        with lock:
            progress.update(names)

    def left(folders: int) -> None:
        with lock:
            progress.update(0, note=f"names; {folders} folders left")

    def opened(folder: str) -> None:
        _keep(filesystem, folder, kept, OPENED, lambda: _entries(filesystem, folder), said)

    def below(folder: str) -> None:
        _keep(filesystem, folder, kept, BELOW, lambda: _names(retried(lambda: filesystem.find(folder))), said)

    levels: set[str] = set()
    folders = [root]
    # Where it stops, on an error or a signal, requests that have not begun are given up.
    with ProgressBar("list", 0, every=10.0) as progress, _pool() as pool:
        for level in count():
            # A pattern without ** is of a known depth: every level of it is opened, and nothing below.
            if not folders or ((pattern is None or pattern.deep) and level and (len(folders) >= ENOUGH or level == DEEPEST)):
                break
            _each(pool, opened, [folder for folder in folders if kept.rows(OPENED, folder) is None], left)
            levels.update(folders)
            folders = [
                name.removesuffix("/")
                for folder in folders
                for name, is_folder in kept.read(OPENED, folder)
                if is_folder and _entered(name, pattern)
            ]
        _each(pool, below, [folder for folder in folders if kept.rows(BELOW, folder) is None], left)
    return levels


@contextlib.contextmanager
def _pool() -> Iterator[ThreadPoolExecutor]:
    pool = ThreadPoolExecutor(CONNECTIONS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


def _each(pool: ThreadPoolExecutor, work: Callable[[str], None], folders: Iterable[str], left: Callable[[int], None]) -> None:
    """Do the work of each folder; of those that fail, raise the error of the first that is seen. left: told how many are to come."""
    running: set[Future[None]] = {pool.submit(work, folder) for folder in folders}
    while running:
        done, running = wait(running, return_when=FIRST_COMPLETED)
        for each in done:
            each.result()
        left(len(running))


def _keep(
    filesystem: Any,
    folder: str,
    kept: SpilledNames,
    kind: str,
    whole: Callable[[], Iterable[Entry]],
    said: Callable[[int], None],
) -> None:
    """Put on disk what a folder holds: in pages where its store has them, otherwise all at once. said: told of new names."""
    if (pages := pages_of(filesystem, folder, deep=kind == BELOW)) is not None:
        try:
            if kept.write_pages(kind, folder, pages, said):
                return
        except OutOfOrder:
            kept.forget(kind, folder)
    said(kept.write(kind, folder, whole()))  # also what is a file, or not there


def _entered(folder: str, pattern: UrlPattern | None) -> bool:
    return pattern is None or pattern.enters(folder.removesuffix("/"))


def _files(kept: SpilledNames, folder: str, opened: set[str], pattern: UrlPattern | None) -> Iterator[str]:
    # What lies below a folder is neighbours in the sorted order, at the place of the folder's name with its slash.
    for name, is_folder in kept.read(OPENED, folder):
        if not is_folder:
            yield name
        elif not _entered(name, pattern):
            continue
        elif (inner := name.removesuffix("/")) in opened:
            yield from _files(kept, inner, opened, pattern)
        else:
            yield from (below for below, _ in kept.read(BELOW, inner))


def _entries(filesystem: Any, folder: str) -> Iterator[Entry]:
    """Yield the files and folders in a folder; a folder's name ends in a slash."""
    try:
        found: list[dict[str, Any]] = retried(lambda: filesystem.ls(folder, detail=True))
    except FileNotFoundError:
        return
    for entry in found:
        name = str(entry["name"])
        if entry["type"] != "directory":
            yield from _names([name])
        elif name.rstrip("/") != folder.rstrip("/"):  # some stores list a folder's own marker
            yield name.rstrip("/") + "/", True


def _names(names: Iterable[str]) -> Iterator[Entry]:
    # A marker of an empty folder is no file.
    return ((name, False) for name in names if not name.endswith("/"))
