"""A table of captions and other columns, looked up by a video's name.

In:  a CSV, JSONL or parquet file with the column `file`, and usually `caption`.
Out: `CaptionTable.look_up(source)`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq


class CaptionError(ValueError):
    """A caption table that cannot be read; the message names the file, the line or column and the fix."""


@dataclass(frozen=True)
class CaptionTable:
    """Rows by `file`; `columns` are carried into clips.parquet beside the caption."""

    rows: Mapping[str, Mapping[str, str]]
    columns: tuple[str, ...]

    @classmethod
    def read(cls, path: str | Path, columns: Sequence[str] = ()) -> CaptionTable:
        """Read a table in the format of its extension. Raises CaptionError for a missing file or column, or a broken line."""
        path = Path(path)
        readers = {".csv": _csv, ".jsonl": _jsonl, ".parquet": _parquet}
        reader = readers.get(path.suffix.lower())
        if reader is None:
            raise CaptionError(f"{path}: a caption table must end in .csv, .jsonl or .parquet")
        try:
            records = reader(path)
        except OSError as error:
            raise CaptionError(f"{path}: cannot read the caption table: {error.strerror or error}") from error
        except (pa.ArrowInvalid, csv.Error, UnicodeDecodeError) as error:
            raise CaptionError(f"{path}: not a readable caption table: {error}") from error
        known = set(records[0]) if records else set()
        for wanted in ("file", *columns):
            if records and wanted not in known:
                raise CaptionError(f"{path}: no column `{wanted}`; the table has {', '.join(sorted(known))}")
        return cls({record["file"]: record for record in records}, tuple(columns))

    def look_up(self, source: str) -> tuple[str, dict[str, str]]:
        """Return (caption, carried columns) of a video: by its whole name, else by the longest ending of it that the table has."""
        parts = PurePosixPath(source).parts
        for begin in range(-1, len(parts)):
            row = self.rows.get(source if begin < 0 else str(PurePosixPath(*parts[begin:])))
            if row is not None:
                return row.get("caption", "").strip(), {column: row[column] for column in self.columns}
        return "", {}


def _text(record: Mapping[Any, Any]) -> dict[str, str]:
    return {str(key): "" if value is None else str(value) for key, value in record.items() if key is not None}


def _csv(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        return [_text(record) for record in csv.DictReader(file)]


def _jsonl(path: Path) -> list[dict[str, str]]:
    records = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise CaptionError(f"{path}:{number}: not valid JSON: {error.msg}") from error
        if not isinstance(record, dict) or "file" not in record:
            raise CaptionError(f"{path}:{number}: each line must be an object with the key `file`")
        records.append(_text(record))
    return records


def _parquet(path: Path) -> list[dict[str, str]]:
    return [_text(record) for record in pq.read_table(path).to_pylist()]
