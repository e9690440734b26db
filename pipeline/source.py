"""Which videos a corpus holds, and a local file of each.

In:  the `corpus` section: files, folders, globs, fsspec URLs.
Out: `SourceVideo` records in a fixed order; `local` gives a path that the decoder can open.
Called by: pipeline.ray_job (listing), pipeline.plan and pipeline.encode (local files), the tokenizer's training.
"""

from __future__ import annotations

import contextlib
import glob
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any, TypeVar

import fsspec

from pipeline.captions import CaptionTable
from pipeline.config import CorpusConfig
from pipeline.records import SourceVideo
from pipeline.video import VideoError

_GLOB = frozenset("*?[")
_TRIES = 6
_PAUSE = 0.2
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
    names: dict[str, None] = {}
    for entry in config.videos:
        found = _remote(entry, config.extensions) if is_url(entry) else _local(entry, config.extensions)
        if not found:
            raise SourceError(f"corpus.videos: {entry} holds no video (endings that count: {' '.join(config.extensions)})")
        names.update(dict.fromkeys(found))
    return [SourceVideo(name, *table.look_up(name)) for name in names]


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
        path = Path(folder) / f"video{PurePosixPath(name).suffix}"
        filesystem, inner = fsspec.core.url_to_fs(name)
        try:
            retried(lambda: filesystem.get_file(inner, str(path)))
        except FileNotFoundError as error:
            raise VideoError("not_found", f"{name}: not found") from error
        except PermissionError as error:
            raise VideoError("no_permission", f"{name}: no permission") from error
        except OSError as error:
            raise VideoError("unreachable", f"{name}: {error}") from error
        yield path


def sidecar(name: str) -> str:
    """Return the text of NAME.txt beside the video, empty when there is none."""
    if is_url(name):
        filesystem, inner = fsspec.core.url_to_fs(name.rsplit(".", 1)[0] + ".txt")
        try:
            return str(retried(lambda: filesystem.cat_file(inner)).decode(errors="replace")).strip()
        except FileNotFoundError:
            return ""
    path = Path(name).with_suffix(".txt")
    try:
        return path.read_text(errors="replace").strip() if path.suffix != Path(name).suffix else ""
    except (FileNotFoundError, NotADirectoryError):
        return ""


def retried(call: Callable[[], _T]) -> _T:
    """Call until it works: throttled and dropped connections are tried again with growing pauses; a missing file is not."""
    for attempt in range(_TRIES):
        try:
            return call()
        except (FileNotFoundError, PermissionError, IsADirectoryError):
            raise
        except OSError:
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
    except OSError as error:
        raise SourceError(f"corpus.videos: cannot list {entry}: {error}") from error
    if listed == [inner]:
        return [entry]
    return [str(filesystem.unstrip_protocol(name)) for name in listed if _counts(name, extensions)]


def _counts(name: str, extensions: tuple[str, ...]) -> bool:
    base = name.rsplit("/", 1)[-1]
    return not base.startswith(".") and base.lower().endswith(tuple(extension.lower() for extension in extensions))
