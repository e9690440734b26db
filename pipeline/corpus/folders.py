"""Files below a folder, a glob or a URL, those that count as videos and those that are left out.

In:  an entry of corpus.videos, the extensions that count.
Out: names in sorted order, streamed; counts of the others by ending.
"""

from __future__ import annotations

import glob
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import chain, dropwhile, islice
from pathlib import Path, PurePosixPath
from typing import NoReturn

import fsspec

from cluster.config.errors import ConfigError
from cluster.runtime.atomic_files import DamagedFile
from cluster.runtime.remote_files import NETWORK, retried
from pipeline.corpus import bucket_listing
from pipeline.corpus.spilled_names import SpilledNames
from pipeline.corpus.url_pattern import MAGIC, UrlPattern

Found = Iterator[str]
_BESIDE = (".txt", ".json")
"""Endings of caption files, which are not counted as left out where a video of the same name is."""


class CorpusError(ConfigError):
    """A corpus that cannot be listed; the message names the entry and the fix."""


@dataclass
class _Stem:
    """A name without its ending: whether a video has it, and the caption files that do."""

    name: str
    video: bool = False
    beside: list[str] = field(default_factory=list)


class Names:
    """Sorts names into those that count and those that are left out, for one entry."""

    def __init__(self, extensions: tuple[str, ...]) -> None:
        self._extensions = tuple(extension.lower() for extension in extensions)
        self.left_out: Counter[str] = Counter()
        """Files that do not count, by ending."""

    @staticmethod
    def is_glob(entry: str) -> bool:
        """Whether an entry is a pattern."""
        return bool(MAGIC & set(entry))

    def counted(self, names: Iterable[str], also: tuple[str, ...] = ()) -> Found:
        """Yield the names that count. also: more endings that do. Hidden files never count.

        names: sorted, or sorted in each folder.
        """
        endings = (*self._extensions, *also)
        # Names of one stem begin alike, so what is between them has a longer stem: those that may still get a video are few.
        stems: list[_Stem] = []
        for name in names:
            base = name.rsplit("/", 1)[-1]
            while stems and not name.startswith(f"{stems[-1].name}."):
                self._leave(stems.pop())
            if base.startswith("."):
                continue
            stem, _, ending = name.rpartition(".")
            video, beside = base.lower().endswith(endings), f".{ending.lower()}" in _BESIDE
            if (video or beside) and not (stems and stems[-1].name == stem):
                stems.append(_Stem(stem))
            if video:
                stems[-1].video = True
                yield name
            elif beside:
                stems[-1].beside.append(name)
            else:
                self._count(name)
        while stems:
            self._leave(stems.pop())

    def _leave(self, stem: _Stem) -> None:
        for name in () if stem.video else stem.beside:
            self._count(name)

    def _count(self, name: str) -> None:
        self.left_out[PurePosixPath(name).suffix.lower() or "without ending"] += 1


def local_names(entry: str, names: Names) -> Found:
    """Return the files of a local entry. Raises CorpusError for one that is missing or cannot be listed."""
    path = Path(entry)
    if path.is_dir():
        return _walked(path, names)
    if path.exists():
        return iter([str(path)])
    if names.is_glob(entry):
        return names.counted(sorted(_matches(entry)), _named_by(entry))
    raise CorpusError(f"corpus.videos: {entry} does not exist")


def _matches(pattern: str) -> Iterator[str]:
    """Yield the files that a pattern matches. `**` is not left to glob, which follows links in circles."""
    before, deep, _ = pattern.partition("**")
    if not deep:
        yield from (name for name in glob.iglob(pattern) if Path(name).is_file())  # noqa: PTH207 - absolute patterns
        return
    folder = before.rpartition("/")[0] or ("/" if before.startswith("/") else ".")
    # The folder itself may be a pattern.
    roots = sorted(glob.iglob(folder)) if MAGIC & set(folder) else [folder]  # noqa: PTH207 - absolute patterns
    for root in filter(os.path.isdir, roots):
        rest = pattern[len(before.rpartition("/")[0]) :].lstrip("/")
        wanted = re.compile(_expression(rest))
        for name in _files(Path(root)):
            if wanted.fullmatch(str(Path(name).relative_to(root))):
                yield name


def _expression(pattern: str) -> str:
    """Return a pattern with `**` as a regular expression; as in a shell, a hidden name matches only where the pattern has the dot."""
    found = ""
    for part in pattern.split("/"):
        if part == "**":
            found += r"(?:(?!\.)[^/]+/)*"
        else:
            visible = r"(?!\.)" if part[:1] in MAGIC else ""
            found += visible + re.sub(r"\[!?\]?[^\]]*\]|\*+|\?|[^*?\[]+|\[", _piece, part) + "/"
    # What ends in `**` means every file below.
    return found.removesuffix("/") if not found.endswith("/)*") else found + r"(?!\.)[^/]+"


def _piece(match: re.Match[str]) -> str:
    text = match.group()
    if text[0] in "*?":
        return "[^/]*" if text[0] == "*" else "[^/]"
    if len(text) > 2 and text[0] == "[":
        return f"[^{text[2:-1]}]" if text[1] == "!" else text
    return re.escape(text)


def _walked(path: Path, names: Names) -> Found:
    return names.counted(_files(path))


def _files(path: Path) -> Iterator[str]:
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
    for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        real = [name for name in folders if not (Path(folder) / name).is_symlink()]
        kept = [name for name in (*sorted(real), *sorted(set(folders) - set(real))) if new(Path(folder) / name)]
        folders[:] = sorted(kept)
        yield from (str(Path(folder) / name) for name in sorted(files))


def remote_names(entry: str, names: Names, kept: SpilledNames | None = None) -> Found:
    """Yield the files of a URL; kept: what an interrupted listing has left. Raises CorpusError for one that cannot be listed."""
    try:
        filesystem, inner = fsspec.core.url_to_fs(entry)
        web = entry.startswith(("http://", "https://"))
        if "*" in inner if web else names.is_glob(inner):  # in an address of the web, ? begins a query
            pattern = None if web else UrlPattern(inner)
            if pattern and pattern.root:
                found = bucket_listing.find(filesystem, pattern.root, kept and kept.within(entry), pattern)
            else:  # links of a page, or buckets
                found = iter(sorted(retried(lambda: filesystem.glob(inner))))
            urls = names.counted((str(filesystem.unstrip_protocol(name)) for name in found), _named_by(inner))
            yield from (url + _behind(entry) for url in urls)
            return
        if web:
            listed = iter(sorted(retried(lambda: filesystem.find(inner))))
        else:
            listed = bucket_listing.find(filesystem, inner, kept and kept.within(entry))
        begin = list(islice(listed, 2))
        if begin == [inner]:
            yield entry
            return
        urls = names.counted(str(filesystem.unstrip_protocol(name)) for name in chain(begin, listed))
        yield from (url + _behind(entry) for url in urls)
    except DamagedFile:
        raise
    except (ImportError, ValueError) as error:
        raise CorpusError(f"corpus.videos: {entry}: {error}") from error
    except NETWORK as error:
        raise CorpusError(f"corpus.videos: cannot list {entry}: {error}") from error


def _behind(entry: str) -> str:
    """Return what a file's URL ends with where `entry` is a chain of fsspec's file systems, such as zip://*.mp4::s3://b/x.zip: the archive."""
    links = list(dropwhile(lambda link: "://" not in link, entry.split("::")))  # `simplecache` and its like name no place
    return "".join(f"::{link}" for link in links[1:])


def _named_by(pattern: str) -> tuple[str, ...]:
    """Return the ending that a pattern spells out, such as .tar in *.tar: it counts whatever corpus.extensions says."""
    ending = PurePosixPath(pattern).suffix.lower()
    return () if not ending or MAGIC & set(ending) else (ending,)
