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


class Seen:
    """Digests met so far: the first video with a digest keeps it. 16 bytes of key a video."""

    def __init__(self) -> None:
        self._first: dict[bytes, str] = {}
        self._copies: dict[bytes, int] = {}

    def meet(self, digest: str, source: str) -> tuple[str, int]:
        """Note a video. Returns (the earlier source that holds the same bytes, or empty; how many came before)."""
        key = bytes.fromhex(digest)
        first = self._first.setdefault(key, source)
        if first == source:
            return "", 0
        count = self._copies.get(key, 0) + 1
        self._copies[key] = count
        return first, count
