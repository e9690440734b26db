"""A table of captions and other columns, looked up by a video's name.

In:  a CSV, JSONL or parquet file, local or behind a URL, with the column `file`, and usually `caption`.
Out: `CaptionTable.look_up(source)`, and counts of what the table holds.

Rules: empty cells, null and NaN are no caption; text is UTF-8 (or UTF-16 or UTF-32 with a byte order mark); half characters become
U+FFFD and are counted; lists are refused. Of several rows for one file the first counts, and the others are counted.
"""

from __future__ import annotations

import csv
import io
import json
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.config.errors import ConfigError
from cluster.runtime.remote_files import NETWORK, is_url, retried
from pipeline.corpus.text import TextError, carried, cell, decoded

_LONGEST = 1 << 26
"""Characters of a CSV cell; Python's own limit of 131,072 refuses long captions."""


class CaptionError(ConfigError):
    """A caption table that cannot be read; the message names the file, the line or column and the fix."""


@dataclass(frozen=True)
class CaptionTable:
    """Rows by `file`; `columns` are carried into the table of clips beside the caption."""

    rows: Mapping[str, Mapping[str, str]]
    columns: tuple[str, ...]
    repeated: int = 0
    """Rows that were left out because an earlier one has the same `file` and says something else."""
    mended: int = 0
    """Rows with half characters, now U+FFFD."""

    @classmethod
    def read(cls, path: str | Path, columns: Sequence[str] = ()) -> CaptionTable:
        """Read a table in the format of its extension. Raises CaptionError for a missing file or column, or a broken line."""
        rows: dict[str, dict[str, str]] = {}
        repeated = mended = 0
        for row, was_mended in table_rows(path, columns):
            mended += was_mended
            repeated += rows.setdefault(row["file"], row) != row
        return cls(rows, tuple(columns), repeated, mended)

    def look_up(self, source: str) -> tuple[str, dict[str, str]]:
        """Return (caption, carried columns) of a video; empty for none."""
        row = self.rows.get(self.match(source), {})
        return row.get("caption", "").strip(), {column: row[column] for column in self.columns if column in row}

    def match(self, source: str) -> str:
        """Return the `file` of the row for a video, empty for none: its whole name, else the longest ending of it in the table.

        Each ending is tried with its extension, then without. Of tar://MEMBER::TAR, the endings are those of MEMBER.
        """
        if source in self.rows:
            return source
        known = self._names
        name = source
        if source.startswith("tar://"):
            name = source.removeprefix("tar://").rpartition("::")[0]
        parts = PurePosixPath(_compared(name)).parts
        for begin in range(len(parts)):
            ending = PurePosixPath(*parts[begin:])
            for candidate in (str(ending), str(ending.parent / ending.stem)):
                if candidate in known:
                    return known[candidate]
        return ""

    @cached_property
    def _names(self) -> dict[str, str]:
        """The `file` of each row, by its form in which names are compared; the first of equal ones."""
        return {_compared(name): name for name in reversed(tuple(self.rows))}


def table_rows(path: str | Path, columns: Sequence[str] = ()) -> Iterator[tuple[dict[str, str], bool]]:
    """Yield the rows of a table in the format of its extension, and whether half characters of it were mended.

    A local parquet file is read row group by row group. Raises CaptionError for a missing file or column, or a broken line.
    """
    name = str(path)
    readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
    reader = readers.get(PurePosixPath(name).suffix.lower())
    if reader is None:
        raise CaptionError(f"{name}: a caption table must end in .csv, .jsonl or .parquet")
    wanted, known = ("file", "caption", *columns), set[str]()
    streamed = reader is _parquet and not is_url(name) and Path(name).is_file()
    try:
        for place, record in reader(b"" if streamed else _content(name), name, wanted):
            if not known.issuperset(record):
                known.update(map(str, record))
            row = _row(record, columns, place)
            yield (
                row,
                any("\ufffd" in text for text in row.values()) and not any("\ufffd" in str(v) for v in record.values()),
            )
    except TextError as error:
        raise CaptionError(f"{name}: {error}") from error
    except (pa.ArrowException, csv.Error, OSError) as error:
        raise CaptionError(f"{name}: not a readable caption table: {' '.join(str(error).split())}; write it anew") from error
    for column in ("file", *columns):
        if known and column not in known:
            raise CaptionError(f"{name}: no column `{column}`; the table has {', '.join(sorted(known))}")


def _compared(name: str) -> str:
    """Return a name in the form in which names are compared: without a leading `./`, accents composed (NFC)."""
    return unicodedata.normalize("NFC", str(PurePosixPath(name)))


def _content(name: str) -> bytes:
    try:
        if not is_url(name):
            return Path(name).read_bytes()
        filesystem, inner = fsspec.core.url_to_fs(name)
        return bytes(retried(lambda: filesystem.cat_file(inner)))
    except (ImportError, ValueError) as error:
        raise CaptionError(f"{name}: {error}") from error
    except NETWORK as error:
        said = getattr(error, "strerror", None) or error
        raise CaptionError(f"{name}: cannot read the caption table: {said}") from error


def _row(record: Mapping[str, Any], columns: Sequence[str], place: str) -> dict[str, str]:
    """Return the cells that are used, as text. Raises TextError with the place of a cell that is none."""
    row = {}
    for column in ("file", "caption", *columns):
        if column not in record and column in ("file", "caption"):
            continue
        value = record.get(column)
        try:
            row[column] = carried(value) if column in columns else cell(value)
        except TextError as error:
            raise TextError(f"{place}: `{column}` {error}") from error
    if "file" in record and not row["file"].strip():
        raise TextError(f"{place}: `file` is empty")
    row.setdefault("file", "")
    return row


def _csv(data: bytes, name: str, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    csv.field_size_limit(_LONGEST)
    reader = csv.reader(io.StringIO(decoded(data), newline=""), strict=True)
    header: list[str] | None = None
    end = 0
    try:
        for cells in reader:
            line, end = end + 1, reader.line_num
            if not cells:
                continue
            if header is None:
                header = [column.strip() for column in cells]
                continue
            if len(cells) > len(header):
                raise TextError(
                    f"line {line}: {len(cells)} cells, but the header has {len(header)}; put a text that holds a comma into "
                    'double quotes ("a dog, running")'
                )
            yield f"line {line}", dict(zip(header, cells))
    except csv.Error as error:
        raise TextError(f"line {end + 1}: not valid CSV: {error}") from error


def _jsonl(data: bytes, name: str, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    # Only a line feed ends a line: str.splitlines would also split at characters that JSON allows inside of texts.
    for number, line in enumerate(decoded(data).split("\n"), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CaptionError(f"{name}:{number}: not valid JSON: {error.msg}") from error
        if not isinstance(record, dict) or "file" not in record:
            raise CaptionError(f"{name}:{number}: each line must be an object with the key `file`")
        yield f"line {number}", record


def _parquet(data: bytes, name: str, wanted: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    file = pq.ParquetFile(io.BytesIO(data) if data else name, page_checksum_verification=True)
    columns = [column for column in file.schema_arrow.names if column in wanted]
    if "file" not in columns:
        raise CaptionError(f"{name}: no column `file`; the table has {', '.join(sorted(file.schema_arrow.names))}")
    number = 0
    for batch in file.iter_batches(columns=columns):
        for record in batch.to_pylist():
            number += 1
            yield f"row {number}", record
