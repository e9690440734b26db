"""Shards of an object store, cached in a local folder of bounded size while they are read.

In:  the URL of a SHARDS folder (any that fsspec knows), a local folder, a limit in bytes.
Out: local paths of single files; the least recently used tars are evicted.

All ranks of a host share the folder. A file is fetched under a temporary name, its size compared with the store's, and renamed,
under a lock of its own, so it is fetched once and never seen in part. Training stays inside a window of shards for a long time
(pretrain/data/sample_order.py), so a small cache is enough. Every sample is checked against its xxh3 when it is read, as from a
local disk. An evicted file stays readable for whoever has it open; its space is freed when they close it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from pathlib import Path

import fsspec

from cluster.runtime.file_lock import FileLock
from cluster.runtime.remote_files import NETWORK, download, retried

_PARTIAL = ".partial"


class CacheError(OSError):
    """A file that cannot be fetched from the store; the message names its URL and the reason."""


class ShardCache:
    """Local copies of the files below one URL. Safe to use from several threads and processes."""

    def __init__(self, url: str, folder: Path, limit: int) -> None:
        """folder: shared by all caches of a host. limit: bytes of tars kept there, those of other URLs included."""
        self.url, self.root, self.limit = url.rstrip("/"), folder, limit
        # Two URLs may hold files of one name.
        self.folder = folder / hashlib.sha256(self.url.encode()).hexdigest()[:16]
        self._files, self._inner = fsspec.core.url_to_fs(self.url)

    def refresh(self, name: str) -> bool:
        """Fetch a small file again. Returns False, and removes the local copy, if the store has none. Raises CacheError."""
        with self._locked(name):
            try:
                self._fetch(name)
            except FileNotFoundError:
                (self.folder / name).unlink(missing_ok=True)
                return False
        return True

    def get(self, name: str) -> Path:
        """Return the local path of a file, fetched if it is not cached. Raises FileNotFoundError or CacheError."""
        path = self.folder / name
        if not self._touch(path):
            with self._locked(name):
                if not self._touch(path):
                    self._fetch(name)
            self._evict(path)
        return path

    def has(self, name: str) -> bool:
        """Return whether the store has a file."""
        return bool(retried(lambda: self._files.exists(f"{self._inner}/{name}")))

    def _touch(self, path: Path) -> bool:
        """Mark a file as used now. Returns False if it is not cached."""
        try:
            os.utime(path)
        except FileNotFoundError:
            return False
        return True

    def _fetch(self, name: str) -> None:
        path, source = self.folder / name, f"{self._inner}/{name}"
        partial = path.with_name(path.name + _PARTIAL)
        path.parent.mkdir(parents=True, exist_ok=True)

        # A cached listing would hide new files.
        self._files.invalidate_cache()
        try:
            retried(lambda: download(self._files, source, partial))
        except FileNotFoundError:
            partial.unlink(missing_ok=True)
            raise
        except NETWORK as error:
            partial.unlink(missing_ok=True)
            raise CacheError(f"{self.url}/{name}: {error}") from error
        partial.replace(path)

    def _evict(self, newest: Path) -> None:
        """Evict the least recently used tars until the limit holds; `newest` stays whatever its size."""
        with self._locked("room"):
            found = []
            for path in self.root.glob("*/*/*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    facts = path.stat()
                    found.append((facts.st_mtime_ns, facts.st_size, path))
            total = sum(size for _, size, _ in found)
            for _, size, path in sorted(found):
                if total <= self.limit:
                    return
                if path != newest:
                    path.unlink(missing_ok=True)
                    total -= size

    def _locked(self, name: str) -> FileLock:
        path = self.root / "locks" / hashlib.sha256(f"{self.url if name != 'room' else ''}/{name}".encode()).hexdigest()[:16]
        return FileLock(path, busy=None)
