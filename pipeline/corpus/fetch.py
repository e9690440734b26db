"""A video of the corpus as a local file: fetched if it is remote, its content digest, and the caption file beside it.

Failures are `VideoError`s with a one-word reason, so that each becomes a recorded reject.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import xxhash

from cluster.runtime.remote_files import UNREACHABLE, download, is_url, retried
from pipeline.corpus import tar_index
from pipeline.corpus.text import TextError, cell, decoded, mended
from pipeline.video import VideoError, regular

_CHUNK = 1 << 20


@contextlib.contextmanager
def local(name: str) -> Iterator[Path]:
    """Give a local path of the video; a remote one is copied to a temporary file for as long as the context lasts.

    Raises VideoError: bad_name, not_found, no_permission, unreachable (after several tries).
    """
    if not is_url(name):
        yield Path(name)
        return
    inside = tar_index.split(name)
    ending = PurePosixPath(inside[0] if inside else name.split("::")[0].split("?")[0]).suffix
    with tempfile.TemporaryDirectory(prefix="videoar-") as folder:
        path = Path(folder) / f"video{ending if ending.isascii() and len(ending) < 10 else ''}"
        try:
            if inside:
                retried(lambda: tar_index.copy(*inside, path))
            else:
                filesystem, inner = _resolved(name)
                retried(lambda: download(filesystem, inner, path))
        except FileNotFoundError as error:
            raise VideoError("not_found", f"{name}: not found") from error
        except PermissionError as error:
            raise VideoError("no_permission", f"{name}: no permission") from error
        except UNREACHABLE as error:
            raise VideoError("unreachable", f"{name}: {error}") from error
        yield path


def _resolved(name: str) -> tuple[Any, str]:
    """Return the file system of a URL and the name in it. Raises VideoError (bad_name) for a URL that none understands."""
    try:
        filesystem, inner = fsspec.core.url_to_fs(name)
    except (ImportError, ValueError, TypeError, KeyError) as error:
        raise VideoError("bad_name", f"{name}: no file system for this URL: {error}") from error
    return filesystem, str(inner)


def content_digest(path: Path) -> str:
    """Return xxh3-128 (hex) over the file's bytes. Raises VideoError: not_found, no_permission, unreadable."""
    hasher = xxhash.xxh3_128()
    try:
        regular(path)
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
    except OSError as error:
        missing = isinstance(error, FileNotFoundError | IsADirectoryError)
        reason = "not_found" if missing else "no_permission" if isinstance(error, PermissionError) else "unreadable"
        raise VideoError(reason, f"{path}: {error.strerror}") from error
    return hasher.hexdigest()


class Identity:
    """A local file as it is now; `check` fails once it has been replaced or written to. Raises VideoError as `content_digest`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stamp = _stamp(path)

    def check(self) -> None:
        """Raise VideoError (changed) where the file is not what it was. Costs a look at its times and size."""
        if _stamp(self.path) != self._stamp:
            raise VideoError("changed", f"{self.path}: was changed while it was read; {_RETRY}")

    def check_content(self, digest: str) -> None:
        """Raise VideoError (changed) where the content is not that of `digest`. A file is read once in a process."""
        if _known_digest(self.path, self._stamp) != digest:
            raise VideoError("changed", f"{self.path}: has changed since its clips were planned; {_RETRY}")


_RETRY = "run with --retry to plan it anew"


def _stamp(path: Path) -> tuple[int, ...]:
    try:
        status = path.stat()
    except OSError:
        return ()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=256)
def _known_digest(path: Path, stamp: tuple[int, ...]) -> str:
    return content_digest(path)


@contextlib.contextmanager
def opened(name: str, digest: str) -> Iterator[Path]:
    """Give a local path of a video as `local` does, once its content is that of the digest. Raises VideoError, also changed."""
    with local(name) as path:
        Identity(path).check_content(digest)
        yield path


def sidecar(name: str) -> str:
    """Return the caption beside a video: the text of NAME.txt, else `caption` or `text` of NAME.json, else an empty string.

    In a tar, NAME may also be what comes before the first dot of the member's name, as WebDataset names samples.
    Raises VideoError (no_permission, unreadable, unreachable, bad_caption) for a file that exists but cannot be read, or whose
    caption is no text: to continue without it would lose the caption silently.
    """
    inside = tar_index.split(name)
    if inside:
        first, chain, rest = "tar://" + inside[0], "::", inside[1]
    else:  # only in a URL does `::` chain file systems
        first, chain, rest = name.partition("::") if is_url(name) else (name, "", "")
    folder, slash, base = first.rpartition("/")
    stem, dot, ending = base.rpartition(".")
    if not dot:
        return ""
    stems = [stem, base.partition(".")[0]] if inside else [stem]
    for stem in filter(None, dict.fromkeys(stems)):
        for kind in ("txt", "json"):
            if ending == kind:
                continue
            beside = f"{folder}{slash}{stem}.{kind}{chain}{rest}"
            data = _beside(beside)
            if data is None:
                continue
            try:
                caption = _caption(data, kind).strip()
            except TextError as error:
                raise VideoError("bad_caption", f"{beside} (the caption beside the video): {error}") from error
            if caption or kind == "txt":
                return caption
    return ""


def _caption(data: bytes, kind: str) -> str:
    text = decoded(data)
    if kind == "txt":
        return mended(text)
    if not text.strip():
        return ""
    try:
        plain = json.loads(text)
    except json.JSONDecodeError as error:
        raise TextError(f"not valid JSON: {error}") from error
    if not isinstance(plain, dict):
        raise TextError("not a JSON object with the key `caption`")
    for key in ("caption", "text"):
        try:
            if found := cell(plain.get(key)):
                return found
        except TextError as error:
            raise TextError(f"`{key}` {error}") from error
    return ""


def _beside(name: str) -> bytes | None:
    inside = tar_index.split(name)
    if not is_url(name):
        try:
            return Path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            return None
        except OSError as error:
            reason = "no_permission" if isinstance(error, PermissionError) else "unreadable"
            raise VideoError(reason, f"{name} (the caption beside the video): {error.strerror}") from error
    try:
        if inside:
            return retried(lambda: tar_index.read(*inside))
        filesystem, inner = _resolved(name)
        return bytes(retried(lambda: filesystem.cat_file(inner)))
    except (FileNotFoundError, KeyError, PermissionError):
        # S3 answers 403, not 404, for a missing object if the caller may not list the bucket.
        return None
    except UNREACHABLE as error:
        raise VideoError("unreachable", f"{name} (the caption beside the video): {error}") from error
