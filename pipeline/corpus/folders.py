"""Files below a folder, a glob or a URL, those that count as videos and those that are left out.

In:  an entry of corpus.videos, the extensions that count.
Out: names in sorted order; counts of the others by ending.
"""

from __future__ import annotations

import glob
import os
from collections import Counter
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any, NoReturn

import fsspec

from cluster.runtime.remote_files import NETWORK, retried

Found = list[str]
_GLOB = frozenset("*?[")
_BESIDE = (".txt", ".json")
"""Endings of caption files, which are not counted as left out where a video of the same name is."""


class CorpusError(ValueError):
    """A corpus that cannot be listed; the message names the entry and the fix."""


class Names:
    """Sorts names into those that count and those that are left out, for one entry."""

    def __init__(self, extensions: tuple[str, ...]) -> None:
        self._extensions = tuple(extension.lower() for extension in extensions)
        self.left_out: Counter[str] = Counter()
        """Files that do not count, by ending."""

    @staticmethod
    def is_glob(entry: str) -> bool:
        """Whether an entry is a pattern."""
        return bool(_GLOB & set(entry))

    def counted(self, names: Iterable[str], also: tuple[str, ...] = ()) -> Found:
        """Return the names that count. also: more endings that do. Hidden files never count."""
        endings = (*self._extensions, *also)
        found: Found = []
        others: Found = []
        for name in names:
            base = name.rsplit("/", 1)[-1]
            if not base.startswith("."):
                (found if base.lower().endswith(endings) else others).append(name)
        stems = {name.rpartition(".")[0] for name in found}
        for name in others:
            stem, _, ending = name.rpartition(".")
            if f".{ending.lower()}" not in _BESIDE or stem not in stems:
                self.left_out[PurePosixPath(name).suffix.lower() or "without ending"] += 1
        return found


def local_names(entry: str, names: Names) -> Found:
    """Return the files of a local entry. Raises CorpusError for one that is missing or cannot be listed."""
    path = Path(entry)
    if path.is_dir():
        return _walked(path, names)
    if path.exists():
        return [str(path)]
    if names.is_glob(entry):
        matches = sorted(name for name in glob.glob(entry, recursive=True) if Path(name).is_file())  # noqa: PTH207 - absolute patterns
        return names.counted(matches, _named_by(entry))
    raise CorpusError(f"corpus.videos: {entry} does not exist")


def _walked(path: Path, names: Names) -> Found:
    """Walk a folder in sorted order, through links too; a folder that several links lead to is walked once."""

    def refuse(error: OSError) -> NoReturn:
        raise CorpusError(f"corpus.videos: cannot list {error.filename}: {error.strerror}") from error

    def new(folder: str | Path) -> bool:
        try:
            status = Path(folder).stat()
        except FileNotFoundError:
            return False  # a link that leads nowhere
        except OSError as error:
            refuse(error)
        place = status.st_dev, status.st_ino
        known = place in seen
        seen.add(place)
        return not known

    seen: set[tuple[int, int]] = set()
    new(path)
    found = []
    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        real = [name for name in folders if not (Path(folder) / name).is_symlink()]
        kept = [name for name in (*sorted(real), *sorted(set(folders) - set(real))) if new(Path(folder) / name)]
        folders[:] = sorted(kept)
        found += names.counted(str(Path(folder) / name) for name in sorted(files))
    return found


def remote_names(entry: str, names: Names) -> Found:
    """Return the files of a URL. Raises CorpusError for one that cannot be listed."""
    try:
        filesystem, inner = fsspec.core.url_to_fs(entry)
        if "*" in inner if entry.startswith(("http://", "https://")) else names.is_glob(inner):  # there, ? begins a query
            matches = [str(filesystem.unstrip_protocol(name)) for name in sorted(retried(lambda: filesystem.glob(inner)))]
            return names.counted(matches, _named_by(entry))
        listed: list[Any] = sorted(retried(lambda: filesystem.find(inner)))
    except (ImportError, ValueError) as error:
        raise CorpusError(f"corpus.videos: {entry}: {error}") from error
    except NETWORK as error:
        raise CorpusError(f"corpus.videos: cannot list {entry}: {error}") from error
    if listed == [inner]:
        return [entry]
    return names.counted(str(filesystem.unstrip_protocol(name)) for name in listed)


def _named_by(entry: str) -> tuple[str, ...]:
    """Return the ending that a pattern spells out, such as .tar in *.tar: it counts whatever corpus.extensions says."""
    ending = PurePosixPath(entry).suffix.lower()
    return () if not ending or _GLOB & set(ending) else (ending,)
