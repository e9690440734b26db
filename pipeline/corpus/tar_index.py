"""Members of tars, read by an index that is made once for each tar in a process, so that a member costs the same in a tar of any size.

In:  tar://MEMBER::TAR, where TAR is a local path or a URL, and MEMBER any name, also one that holds `::`, `#` or `?`.
Out: the names of the members; the bytes of one. Two tars' indexes are kept.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import IO, Any, NamedTuple

import fsspec

from cluster.runtime.remote_files import BrokenTransfer, is_url

_NAME = re.compile(r"tar://(?P<member>.+)::(?P<tar>[^:].*?\.tar)", re.IGNORECASE | re.DOTALL)
_CHUNK = 1 << 20


class Place(NamedTuple):
    """Where a member's bytes lie in its tar."""

    offset: int
    size: int


def split(name: str) -> tuple[str, str] | None:
    """Return (member, tar) of tar://MEMBER::TAR, None for any other name, a chain of fsspec's file systems included."""
    match = _NAME.fullmatch(name)
    if match is None or "::" in match["tar"] or re.search(r"::[a-z0-9+]+$", match["member"]):
        return None
    return match["member"], match["tar"]


def members(tar: str) -> Mapping[str, Place]:
    """Return the regular files of a tar by name, the last of equal names. Raises OSError, tarfile.TarError."""
    return _index(tar, _stamp(tar))


def place(member: str, tar: str) -> Place:
    """Return where a member lies. Raises FileNotFoundError, OSError, tarfile.TarError."""
    found = members(tar).get(member)
    if found is None:
        raise FileNotFoundError(2, "no such member", f"tar://{member}::{tar}")
    return found


def read(member: str, tar: str) -> bytes:
    """Return a member's bytes. Raises FileNotFoundError, OSError, tarfile.TarError."""
    return b"".join(_chunks(tar, place(member, tar)))


def copy(member: str, tar: str, target: Path) -> None:
    """Copy a member to a local file. Raises FileNotFoundError, OSError, tarfile.TarError."""
    with target.open("wb") as out:
        for chunk in _chunks(tar, place(member, tar)):
            out.write(chunk)


def _chunks(tar: str, at: Place) -> Iterator[bytes]:
    with _opened(tar) as file:
        file.seek(at.offset)
        left = at.size
        while left:
            chunk = file.read(min(left, _CHUNK))
            if not chunk:
                raise BrokenTransfer(f"{tar} ends inside of a member")
            left -= len(chunk)
            yield chunk


@contextmanager
def _opened(tar: str) -> Iterator[IO[bytes]]:
    if not is_url(tar):
        with Path(tar).open("rb") as local:
            yield local
        return
    filesystem, inner = fsspec.core.url_to_fs(tar)
    with filesystem.open(inner, "rb") as remote:
        yield remote


def _stamp(tar: str) -> Any:
    """Return what changes when the tar is replaced; a remote one is taken to stay as it is while the process runs."""
    if is_url(tar):
        return None
    status = Path(tar).stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=2)
def _index(tar: str, stamp: Any) -> Mapping[str, Place]:
    found: dict[str, Place] = {}
    with _opened(tar) as file, tarfile.open(fileobj=file, mode="r:") as archive:
        for info in archive:
            if info.isreg() and not info.issparse():
                found[info.name] = Place(info.offset_data, info.size)
            elif info.islnk() and info.linkname in found:
                found[info.name] = found[info.linkname]
            vars(archive)["members"] = []  # tarfile keeps every header, and looks through them for each link
    return found
