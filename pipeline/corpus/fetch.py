"""A video of the corpus as a local file: fetched if it is remote, its content digest, and the caption file beside it.

Failures are `VideoError`s with a one-word reason, so that each becomes a recorded reject.
"""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import fsspec
import xxhash

from cluster.runtime.remote_files import UNREACHABLE, download, is_url, retried
from pipeline.video import VideoError, regular

_CHUNK = 1 << 20


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
            retried(lambda: download(filesystem, inner, path))
        except FileNotFoundError as error:
            raise VideoError("not_found", f"{name}: not found") from error
        except PermissionError as error:
            raise VideoError("no_permission", f"{name}: no permission") from error
        except UNREACHABLE as error:
            raise VideoError("unreachable", f"{name}: {error}") from error
        yield path


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


def sidecar(name: str) -> str:
    """Return the caption beside a video: the text of NAME.txt, else `caption` or `text` of NAME.json, else an empty string.

    Raises VideoError (no_permission, unreadable, unreachable) for a file that exists but cannot be read: to continue without it
    would lose the caption silently.
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
        # S3 answers 403, not 404, for a missing object if the caller may not list the bucket.
        return None
    except UNREACHABLE as error:
        raise VideoError("unreachable", f"{name} (the caption beside the video): {error}") from error
