"""Which videos a corpus holds, and a local file of each.

In:  the `corpus` section: files, folders, globs, fsspec URLs; lists of videos (parquet, csv, jsonl); WebDataset tars.
Out: `SourceVideo` records in a fixed order; `local` gives a path that the decoder can open.
Called by: pipeline.ray_job (listing), pipeline.plan and pipeline.encode (local files), the tokenizer's training.
"""

from __future__ import annotations

import contextlib
import glob
import http.client
import importlib
import importlib.util
import json
import os
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec
from fsspec.exceptions import FSTimeoutError

from pipeline.corpus.caption_table import CaptionTable
from pipeline.config import CorpusConfig
from pipeline.records import SourceVideo
from pipeline.video import VideoError

LISTS = (".csv", ".jsonl", ".parquet")
_GLOB = frozenset("*?[")
_TRIES = 6
_PAUSE = 0.2


def _network_errors() -> tuple[type[Exception], ...]:
    """What a failing connection raises: the libraries below fsspec have families of their own, where they are installed."""
    found: list[type[Exception]] = [OSError, http.client.HTTPException, FSTimeoutError]
    for module, name in (
        ("aiohttp", "ClientError"),
        ("botocore.exceptions", "BotoCoreError"),
        ("botocore.exceptions", "ClientError"),
    ):
        if importlib.util.find_spec(module.partition(".")[0]) is not None:
            found.append(getattr(importlib.import_module(module), name))
    return tuple(found)


NETWORK = _network_errors()
UNREACHABLE: tuple[type[Exception], ...] = (*NETWORK, tarfile.TarError)
_T = TypeVar("_T")


class SourceError(ValueError):
    """A corpus that cannot be listed; the message names the entry and the mend."""


def find(config: CorpusConfig) -> list[SourceVideo]:
    """List the corpus in order: entries as configured, each folder sorted, a name that comes twice only once.

    Captions come from the table here; a sidecar NAME.txt is looked for when the video is planned.
    Raises SourceError for an entry that is missing, unreadable or holds no video, and for a corpus without entries.
    """
    if not config.videos:
        raise SourceError("corpus.videos is empty; name files, folders, globs or URLs")
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
            raise SourceError(f"corpus.videos: {entry} holds no video (endings that count: {' '.join(config.extensions)})")
        for video in found:
            videos.setdefault(video.source, video)
    return list(videos.values())


def _listed(path: Path, columns: tuple[str, ...]) -> list[SourceVideo]:
    """Read a list of videos: the column `file` (relative names are below the list's folder), `caption` and carried columns."""
    rows = CaptionTable.read(path, columns).rows
    found = []
    for name, row in rows.items():
        whole = name if is_url(name) or Path(name).is_absolute() else str(path.parent / name)
        found.append(SourceVideo(whole, row.get("caption", "").strip(), {column: row[column] for column in columns}))
    return found


def _is_tar(name: str) -> bool:
    return name.lower().endswith(".tar") and "::" not in name


def _members(tar: str, extensions: tuple[str, ...]) -> list[str]:
    """Videos inside of a tar, as fsspec names them: tar://MEMBER::TAR."""
    try:
        filesystem, _ = fsspec.core.url_to_fs(f"tar://::{tar}")
        names = sorted(retried(lambda: filesystem.find("")))
    except (OSError, tarfile.TarError) as error:
        raise SourceError(f"corpus.videos: cannot read {tar}: {error}") from error
    return [f"tar://{name}::{tar}" for name in names if _counts(name, extensions)]


def is_url(name: str) -> bool:
    """Whether `name` is an fsspec URL rather than a local path."""
    return "://" in name


@contextlib.contextmanager
def local(name: str) -> Iterator[Path]:
    """Give a local path of the video; a remote one is copied to a temporary file for as long as the context lasts.

    Raises VideoError: not_found, no_permission, unreachable (after several tries).
    """
    if not is_url(name):
        yield Path(name)
        return
    with tempfile.TemporaryDirectory(prefix="videoar-") as folder:
        path = Path(folder) / f"video{PurePosixPath(name.split('::')[0]).suffix}"
        filesystem, inner = fsspec.core.url_to_fs(name)
        try:
            retried(lambda: _copy(filesystem, inner, path))
        except FileNotFoundError as error:
            raise VideoError("not_found", f"{name}: not found") from error
        except PermissionError as error:
            raise VideoError("no_permission", f"{name}: no permission") from error
        except UNREACHABLE as error:
            raise VideoError("unreachable", f"{name}: {error}") from error
        yield path


def _copy(filesystem: Any, inner: str, path: Path) -> None:
    filesystem.get_file(inner, str(path))
    size = filesystem.size(inner)
    if size is not None and path.stat().st_size != size:
        raise OSError(f"the connection broke after {path.stat().st_size} of {size} bytes")


def sidecar(name: str) -> str:
    """Return the caption beside a video: the text of NAME.txt, else `caption` or `text` of NAME.json, else nothing.

    Raises VideoError (no_permission, unreadable, unreachable) for one that is there and cannot be read: going on without it
    would lose it silently.
    """
    first, chain, rest = name.partition("::")
    stem, dot, ending = first.rpartition(".")
    if not dot or "/" in ending:
        return ""
    text = _beside(f"{stem}.txt{chain}{rest}") if ending != "txt" else None
    if text is not None:
        return text.strip()
    text = _beside(f"{stem}.json{chain}{rest}") if ending != "json" else None
    try:
        plain = json.loads(text or "{}")
    except json.JSONDecodeError:
        return ""
    found = (plain.get("caption") or plain.get("text") or "") if isinstance(plain, dict) else ""
    return str(found).strip()


def _beside(name: str) -> str | None:
    if not is_url(name):
        try:
            return Path(name).read_text(errors="replace")
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            reason = "no_permission" if isinstance(error, PermissionError) else "unreadable"
            raise VideoError(reason, f"{name} (the caption beside the video): {error.strerror}") from error
    filesystem, inner = fsspec.core.url_to_fs(name)
    try:
        return str(retried(lambda: filesystem.cat_file(inner)).decode(errors="replace"))
    except (FileNotFoundError, KeyError, PermissionError):
        # S3 answers 403, not 404, for an object that does not exist, to those who may not list the bucket.
        return None
    except UNREACHABLE as error:
        raise VideoError("unreachable", f"{name} (the caption beside the video): {error}") from error


def retried(call: Callable[[], _T]) -> _T:
    """Call until it works: throttled and dropped connections are tried again with growing pauses; a missing file is not."""
    for attempt in range(_TRIES):
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except NETWORK:
            if attempt == _TRIES - 1:
                raise
            time.sleep(_PAUSE * 2**attempt)
    raise AssertionError("unreachable")


def _local(entry: str, extensions: tuple[str, ...]) -> list[str]:
    path = Path(entry)
    if path.is_dir():

        def refuse(error: OSError) -> None:
            raise SourceError(f"corpus.videos: cannot list {error.filename}: {error.strerror}") from error

        found = []
        for folder, folders, files in os.walk(path, onerror=refuse, followlinks=True):
            folders.sort()
            found += [str(Path(folder) / name) for name in sorted(files) if _counts(name, extensions)]
        return found
    if path.exists():
        return [str(path)]
    if _GLOB & set(entry):
        return sorted(name for name in glob.glob(entry, recursive=True) if Path(name).is_file())  # noqa: PTH207 - absolute patterns
    raise SourceError(f"corpus.videos: {entry} does not exist")


def _remote(entry: str, extensions: tuple[str, ...]) -> list[str]:
    try:
        filesystem, inner = fsspec.core.url_to_fs(entry)
        if _GLOB & set(inner):
            return [str(filesystem.unstrip_protocol(name)) for name in sorted(retried(lambda: filesystem.glob(inner)))]
        listed: list[Any] = sorted(retried(lambda: filesystem.find(inner)))
    except (ImportError, ValueError) as error:
        raise SourceError(f"corpus.videos: {entry}: {error}") from error
    except NETWORK as error:
        raise SourceError(f"corpus.videos: cannot list {entry}: {error}") from error
    if listed == [inner]:
        return [entry]
    return [str(filesystem.unstrip_protocol(name)) for name in listed if _counts(name, extensions)]


def _counts(name: str, extensions: tuple[str, ...]) -> bool:
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and base.lower().endswith(tuple(extension.lower() for extension in extensions))
