"""Names below a prefix of an S3 bucket, a page at a time, from any name on.

In:  an fsspec file system and a folder of it, as bucket/prefix.
Out: pages of entries in the order of their names, from the first page on or from that after a name that is known.

fsspec's `ls` and `find` return a folder's names all at once: ten million in one folder are ten gigabytes, and a listing that is
interrupted has nothing of them. S3 lists in the order of UTF-8 and begins after any name (ListObjectsV2, StartAfter). Its directory
buckets do neither, and other stores offer it otherwise or not at all: for those, and for access points, there are no pages.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from typing import Any

from cluster.runtime.remote_files import retried
from pipeline.corpus.spilled_names import Entry

Pages = Callable[[str], Iterator[list[Entry]]]
"""The pages after a name; of all names for "". A folder's name ends in a slash, and may come again after itself."""
_UNSORTED = "--x-s3"
"""Ending of the names of directory buckets (S3 Express)."""
_ARN = "arn:"
"""Begin of the name of an access point, which has slashes in it."""


class OutOfOrder(Exception):
    """A store that says it is S3 and does not list in order."""


def without_times(filesystem: Any) -> Any:
    """Return a file system to list with: one of S3 that leaves the times of objects as text, other stores' own.

    Of the CPU time that botocore takes for a page of a thousand names, four fifths are its reading of a thousand times (88 against 17 ms,
    Intel Xeon with AMX).
    """
    s3fs: Any = sys.modules.get("s3fs")
    if s3fs is None or not isinstance(filesystem, s3fs.S3FileSystem):
        return filesystem
    session = importlib.import_module("aiobotocore.session").AioSession(**filesystem.kwargs)
    session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=str)
    return type(filesystem)(**{**filesystem.storage_options, "session": session, "skip_instance_cache": True})


def pages_of(filesystem: Any, folder: str, *, deep: bool) -> Pages | None:
    """Return how a folder is listed in pages, None where its store offers none. deep: all files below, in place of what is in it."""
    ask = getattr(filesystem, "call_s3", None)
    bucket, slash, prefix = folder.partition("/")  # a key may have an empty folder in it, as a//b.mp4: the folder a/
    if (
        ask is None
        or getattr(filesystem, "version_aware", False)
        or not bucket
        or bucket.endswith(_UNSORTED)
        or bucket.startswith(_ARN)
    ):
        return None
    request = {**filesystem.req_kw, "Bucket": bucket, "Prefix": f"{prefix}/" if slash else ""}
    if not deep:
        request["Delimiter"] = "/"

    def pages(after: str) -> Iterator[list[Entry]]:
        last = after
        place = {"StartAfter": after.removeprefix(f"{bucket}/")} if after else {}
        while True:
            answer: dict[str, Any] = retried(lambda: ask("list_objects_v2", **request, **place))  # noqa: B023 - called at once
            entries = sorted((*(files := _files(answer, bucket)), *(folders := _folders(answer, bucket))))
            if files != sorted(files) or folders != sorted(folders) or (entries and entries[0][0] < last):
                raise OutOfOrder(folder)
            yield entries
            if not answer.get("IsTruncated"):
                return
            last = entries[-1][0] if entries else last
            place = {"ContinuationToken": answer["NextContinuationToken"]}

    return pages


def _files(answer: dict[str, Any], bucket: str) -> list[Entry]:
    """Return a page's files; the markers of empty folders are none."""
    return [(f"{bucket}/{found['Key']}", False) for found in answer.get("Contents", ()) if not found["Key"].endswith("/")]


def _folders(answer: dict[str, Any], bucket: str) -> list[Entry]:
    return [(f"{bucket}/{found['Prefix']}", True) for found in answer.get("CommonPrefixes", ())]
