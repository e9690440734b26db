"""The history of a run in columns, read from a growing file of JSON lines.

In:  metrics.jsonl (or any file of JSON objects with a `step`), while a job appends to it.
Out: one column of numbers per value, one row per line; each byte is read once.

A job that resumes cuts the file back to a step and goes on from there. The place and checksum of each line are kept, so the rows before
the cut stay and only what is new is read.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from cluster.monitor.decimate import Column

CHUNK = 1 << 20
"""Bytes parsed at a time."""
WORDS = ("stage_name", "bucket", "skipped", "stream", "host")
"""Texts of a line that are kept, as a number each; `History.words` has the texts."""


class History:
    """The rows of one file. `refresh` may be called from several threads; columns are views that later rows do not change."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows = 0
        self.read = 0
        """Bytes read so far."""
        self.size = 0
        """Bytes of the file when it was last looked at."""
        self.damaged = 0
        """Lines that are not a JSON object with a step."""
        self.words: dict[str, list[str]] = {name: [""] for name in WORDS}
        self._codes: dict[str, dict[str, int]] = {name: {"": 0} for name in WORDS}
        self._columns: dict[str, Column] = {}
        self._places: npt.NDArray[np.int64] = np.zeros((0, 2), np.int64)
        self._lock = threading.Lock()

    @property
    def complete(self) -> float:
        """Share of the file that has been read, 0 to 1."""
        return self.read / self.size if self.size else 1.0

    def names(self) -> list[str]:
        """Return the names of the columns, in the order in which they came; nested ones as `scale_loss/4x4`."""
        return list(self._columns)

    def column(self, name: str) -> Column:
        """Return the rows of a column, NaN where a line had no such value."""
        with self._lock:
            full = self._columns.get(name)
            return np.full(self.rows, math.nan) if full is None else full[: self.rows]

    def refresh(self, seconds: float = math.inf) -> bool:
        """Read what is new, for at most about `seconds`; returns whether all has been read. A missing file has no rows."""
        deadline = time.monotonic() + seconds
        with self._lock:
            try:
                with self.path.open("rb") as file:
                    self._keep_what_stands(file)
                    file.seek(self.read)
                    while True:
                        chunk = file.read(CHUNK)
                        whole = chunk.rfind(b"\n") + 1
                        if not whole and len(chunk) == CHUNK:  # a line longer than a chunk
                            chunk += file.readline()
                            whole = chunk.rfind(b"\n") + 1
                        if not whole:
                            self.size = self.read  # what is left is a line that is being written
                            return True
                        self._take(chunk[:whole])
                        file.seek(self.read)
                        if time.monotonic() > deadline:
                            return False
            except FileNotFoundError:
                if self.rows:
                    self._cut(0)
                self.read = self.size = 0
                return True

    def _keep_what_stands(self, file: BinaryIO) -> None:
        """Drop the rows after the last line that is still in the file as it was read."""
        self.size = file.seek(0, 2)
        if not self.rows or self._stands(file, self.rows - 1):
            if self.read > self.size:
                self.read = int(self._places[self.rows - 1, 0]) if self.rows else 0
                self._cut(max(0, self.rows - 1))
            return
        low, high = 0, self.rows - 1
        while low < high:
            middle = (low + high) // 2
            low, high = (middle + 1, high) if self._stands(file, middle) else (low, middle)
        self.read = int(self._places[low, 0])
        self._cut(low)

    def _stands(self, file: BinaryIO, row: int) -> bool:
        begin, checksum = self._places[row].tolist()
        file.seek(begin)
        return zlib.crc32(file.readline()) == checksum

    def _cut(self, rows: int) -> None:
        self.rows = rows
        # Columns may be in use by a reader: what is appended goes to new memory.
        self._columns = {name: column[:rows].copy() for name, column in self._columns.items()}
        self._places = self._places[:rows].copy()

    def _take(self, text: bytes) -> None:
        lists: dict[str, list[float]] = {}
        places: list[tuple[int, int]] = []
        at = self.read
        for line in text.splitlines(keepends=True):
            fields = _fields(line)
            if fields is None:
                self.damaged += bool(line.strip())
            else:
                for name, value in self._numbers(fields):
                    known = lists.setdefault(name, [])
                    if len(known) < len(places):
                        known.extend([math.nan] * (len(places) - len(known)))
                    known.append(value)
                places.append((at, zlib.crc32(line)))
            at += len(line)
        self.read = at
        self._append(lists, places)

    def _numbers(self, fields: Mapping[str, Any]) -> Iterator[tuple[str, float]]:
        for name, value in fields.items():
            if isinstance(value, bool | int | float):
                yield name, value
            elif isinstance(value, dict):
                for key, inner in value.items():
                    if isinstance(inner, int | float):
                        yield f"{name}/{key}", inner
            elif name in self.words and isinstance(value, str):
                codes = self._codes[name]
                if value not in codes:
                    codes[value] = len(codes)
                    self.words[name].append(value)
                yield name, codes[value]
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
            yield "tokens_per_second", fields["tokens"] / fields["seconds"]["total"]

    def _append(self, lists: Mapping[str, list[float]], places: list[tuple[int, int]]) -> None:
        rows = self.rows + len(places)
        self._places = _grown(self._places, self.rows, rows)
        self._places[self.rows : rows] = np.asarray(places, np.int64).reshape(-1, 2)
        for name in lists.keys() - self._columns.keys():
            self._columns[name] = np.full(max(rows, len(self._places)), math.nan)
        for name, column in self._columns.items():
            column = _grown(column, self.rows, rows)
            values = lists.get(name, [])
            column[self.rows : self.rows + len(values)] = values
            column[self.rows + len(values) : rows] = math.nan
            self._columns[name] = column
        self.rows = rows


def _fields(line: bytes) -> dict[str, Any] | None:
    try:
        fields = json.loads(line)
    except ValueError:
        return None
    usable = isinstance(fields, dict) and isinstance(fields.get("step"), int | float)
    return fields if usable else None


def _grown(column: npt.NDArray[Any], used: int, rows: int) -> npt.NDArray[Any]:
    if rows <= len(column):
        return column
    grown = np.empty((max(rows, 2 * len(column), 1024), *column.shape[1:]), column.dtype)
    grown[:used] = column[:used]
    return grown
