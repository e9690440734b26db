"""Copies in the corpus: exact ones by content digest.

In:  video files; content digests in the order of the corpus.
Out: digests; which video a copy repeats.
Called by: pipeline.plan.
"""

from __future__ import annotations

from pathlib import Path

import xxhash

from pipeline.video import VideoError, regular

_CHUNK = 1 << 20


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
