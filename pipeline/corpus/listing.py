"""Which videos a corpus holds.

In:  the `corpus` section: files, folders, globs, fsspec URLs; lists of videos (parquet, csv, jsonl); WebDataset tars.
Out: `SourceVideo` records in a fixed order; fetch.py turns each into a local file.
"""

from __future__ import annotations

import glob
import os
import tarfile
from pathlib import Path
from typing import Any

import fsspec

from cluster.runtime.remote_files import NETWORK, is_url, retried
from pipeline.config import CorpusConfig
from pipeline.corpus.caption_table import CaptionTable
from pipeline.records import SourceVideo

LISTS = (".csv", ".jsonl", ".parquet")
"""Extensions of entries that are lists of videos."""
_GLOB = frozenset("*?[")


class CorpusError(ValueError):
    """A corpus that cannot be listed; the message names the entry and the fix."""


def find(config: CorpusConfig) -> list[SourceVideo]:
    """List the corpus: entries in the order of the configuration, each folder sorted, repeated names dropped.

    Captions come from the table; a sidecar file (NAME.txt, NAME.json) is read only when the video is planned.
    Raises CorpusError for a corpus without entries and for an entry that is missing, unreadable or holds no video.
    """
    if not config.videos:
        raise CorpusError("corpus.videos is empty; name files, folders, globs or URLs")
    table = CaptionTable.read(config.captions, config.columns) if config.captions else CaptionTable({}, ())
    videos: dict[str, SourceVideo] = {}
    for entry in config.videos:
        if entry.lower().endswith(LISTS) and not is_url(entry):
            found = _listed(Path(entry), config.columns)
        else:
            names = _remote(entry, config.extensions) if is_url(entry) else _local(entry, config.extensions)
            names = [inner for name in names for inner in (_members(name, config.extensions) if _is_tar(name) else [name])]
            found = [SourceVideo(name, *table.look_up(name)) for name in names]
        if not found:
            raise CorpusError(f"corpus.videos: {entry} holds no video (extensions that count: {' '.join(config.extensions)})")
        for video in found:
            videos.setdefault(video.source, video)
    return list(videos.values())


def _listed(path: Path, columns: tuple[str, ...]) -> list[SourceVideo]:
    """Read a list of videos: the column `file` (relative to the folder of the list), `caption` and the carried columns."""
    rows = CaptionTable.read(path, columns).rows
    found = []
    for name, row in rows.items():
        whole = name if is_url(name) or Path(name).is_absolute() else str(path.parent / name)
        found.append(SourceVideo(whole, row.get("caption", "").strip(), {column: row[column] for column in columns}))
    return found


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") and "::" not in name


def _members(tar: str, extensions: tuple[str, ...]) -> list[str]:
    """Return the videos inside a tar, as fsspec names them: tar://MEMBER::TAR."""
    try:
        filesystem, _ = fsspec.core.url_to_fs(f"tar://::{tar}")
        names = sorted(retried(lambda: filesystem.find("")))
    except (OSError, tarfile.TarError) as error:
        raise CorpusError(f"corpus.videos: cannot read {tar}: {error}") from error
    return [f"tar://{name}::{tar}" for name in names if _counts(name, extensions)]


def _local(entry: str, extensions: tuple[str, ...]) -> list[str]:
    path = Path(entry)
    if path.is_dir():

        def refuse(error: OSError) -> None:
            raise CorpusError(f"corpus.videos: cannot list {error.filename}: {error.strerror}") from error

        found = []
        for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
            folders.sort()
            found += [str(Path(folder) / name) for name in sorted(files) if _counts(name, extensions)]
        return found
    if path.exists():
        return [str(path)]
    if _GLOB & set(entry):
        return sorted(name for name in glob.glob(entry, recursive=True) if Path(name).is_file())  # noqa: PTH207 - absolute patterns
    raise CorpusError(f"corpus.videos: {entry} does not exist")


def _remote(entry: str, extensions: tuple[str, ...]) -> list[str]:
    try:
        filesystem, inner = fsspec.core.url_to_fs(entry)
        if _GLOB & set(inner):
            return [str(filesystem.unstrip_protocol(name)) for name in sorted(retried(lambda: filesystem.glob(inner)))]
        listed: list[Any] = sorted(retried(lambda: filesystem.find(inner)))
    except (ImportError, ValueError) as error:
        raise CorpusError(f"corpus.videos: {entry}: {error}") from error
    except NETWORK as error:
        raise CorpusError(f"corpus.videos: cannot list {entry}: {error}") from error
    if listed == [inner]:
        return [entry]
    return [str(filesystem.unstrip_protocol(name)) for name in listed if _counts(name, extensions)]


def _counts(name: str, extensions: tuple[str, ...]) -> bool:
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and base.lower().endswith(tuple(extension.lower() for extension in extensions))
