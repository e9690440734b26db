"""The history of a run in columns, read from a growing file of JSON lines.

In:  metrics.jsonl (or any file of JSON objects with a `step`), while a job appends to it.
Out: one column of numbers per value, one row per line; each byte is read once.

A job that resumes cuts the file back to a step and goes on from there. The place and checksum of each line are kept, so the rows before
the cut stay and only what is new is read.
"""

from __future__ import annotations

import io
import json
import math
import threading
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.json

from cluster.monitor.decimate import Column

CHUNK = 1 << 20
"""Bytes parsed at a time."""
LABELS = ("stage_name", "stream", "bucket")
"""Texts of a line that tell its loss from others: the columns `loss_by/LABEL` hold the loss of such lines alone."""
BLOCK = 64
"""Rows whose smallest and largest values are kept, so that a view of a million rows reads a few thousand numbers."""


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
        self._columns: dict[str, Column] = {}
        self._blocks: dict[str, Column] = {}
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
        return bool(zlib.crc32(file.readline()) == checksum)

    def blocks(self, name: str) -> Column:
        """Return the smallest and the largest value of each whole block of rows, as two rows of numbers."""
        with self._lock:
            return self._reduce(name)

    def _cut(self, rows: int) -> None:
        self.rows = rows
        # Columns may be in use by a reader: what is appended goes to new memory.
        self._columns = {name: column[:rows].copy() for name, column in self._columns.items()}
        self._blocks = {name: ends[:, : rows // BLOCK] for name, ends in self._blocks.items()}
        self._places = self._places[:rows].copy()

    def _take(self, text: bytes) -> None:
        lines = text.splitlines(keepends=True)
        ends = np.cumsum([len(line) for line in lines], dtype=np.int64) + self.read
        begins = ends - np.array([len(line) for line in lines], np.int64)
        values, kept = _parsed_at_once(text, len(lines)), np.arange(len(lines))
        if values is None:
            rows = [_numbers(line) for line in lines]
            kept = np.array([at for at, row in enumerate(rows) if row is not None], np.int64)
            self.damaged += sum(row is None and bool(line.strip()) for row, line in zip(rows, lines, strict=True))
            values = _columns([row for row in rows if row is not None])
        checks = np.array([zlib.crc32(line) for line in lines], np.int64)
        self.read += len(text)
        self._append(values, np.stack([begins, checks], axis=1)[kept])

    def _append(self, values: Mapping[str, Column], places: npt.NDArray[np.int64]) -> None:
        rows = self.rows + len(places)
        self._places = _grown(self._places, self.rows, rows)
        self._places[self.rows : rows] = places
        for name in [name for name in values if name not in self._columns]:
            self._columns[name] = np.full(max(rows, len(self._places)), math.nan)
        for name, column in self._columns.items():
            grown = _grown(column, self.rows, rows)
            grown[self.rows : rows] = values.get(name, math.nan)
            self._columns[name] = grown
        self.rows = rows
        for name in self._columns:
            self._reduce(name)

    def _reduce(self, name: str) -> Column:
        """Take the whole blocks of a column that are new into its ends."""
        whole, known = self.rows // BLOCK, self._blocks.get(name, np.zeros((2, 0)))
        if known.shape[1] < whole:
            fresh = self._columns[name][known.shape[1] * BLOCK : whole * BLOCK].reshape(-1, BLOCK)
            ends = np.stack([np.fmin.reduce(fresh, axis=1), np.fmax.reduce(fresh, axis=1)])
            known = self._blocks[name] = np.concatenate([known, ends], axis=1)
        return known


def _parsed_at_once(text: bytes, lines: int) -> dict[str, Column] | None:
    """Return the columns of a text whose lines are all alike and sound; None if they must be looked at one by one."""
    try:
        table = pyarrow.json.read_json(
            io.BytesIO(text), pyarrow.json.ReadOptions(use_threads=False, block_size=2 * len(text) + 1024)
        )
    except pa.ArrowException:
        return None
    found: dict[str, Column] = {}
    labels: dict[str, list[str | None]] = {}
    for name, column in zip(table.column_names, table.columns, strict=True):
        if pa.types.is_struct(column.type):
            inner = column.combine_chunks().flatten()
            fields = {f"{name}/{column.type.field(at).name}": part for at, part in enumerate(inner)}
        else:
            fields = {name: column}
        for key, part in fields.items():
            if pa.types.is_integer(part.type) or pa.types.is_floating(part.type):
                found[key] = part.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
        if name in LABELS and pa.types.is_string(column.type):
            labels[name] = column.to_pylist()
    if table.num_rows != lines or "step" not in found or np.isnan(found["step"]).any():
        return None
    texts = [labels[name] for name in LABELS if name in labels] or [[None] * lines]
    _derive(found, [_label(row) for row in zip(*texts, strict=True)])
    return found


def _derive(found: dict[str, Column], labels: Sequence[str]) -> None:
    """Add the speed, and the loss apart by label."""
    if "tokens" in found and "seconds/total" in found:
        seconds = found["seconds/total"]
        found["tokens_per_second"] = found["tokens"] / np.where(seconds > 0, seconds, math.nan)
    if "loss" in found and labels:
        for label in dict.fromkeys(labels):
            found[f"loss_by/{label}"] = np.where(np.array([each == label for each in labels]), found["loss"], math.nan)


def _label(texts: Sequence[str | None]) -> str:
    return " · ".join(filter(None, texts)) or "all"


def _numbers(line: bytes) -> dict[str, Any] | None:
    """Return the numbers of a line by column, and its label; None for a damaged line."""
    fields = _fields(line)
    if fields is None:
        return None
    found: dict[str, Any] = {"": _label([str(fields.get(name) or "") for name in LABELS])}
    for name, value in fields.items():
        for key, inner in (
            ((f"{name}/{key}", inner) for key, inner in value.items()) if isinstance(value, dict) else ((name, value),)
        ):
            if isinstance(inner, int | float) and not isinstance(inner, bool):
                found[key] = inner
    return found


def _columns(rows: Sequence[Mapping[str, Any]]) -> dict[str, Column]:
    names = [name for name in dict.fromkeys(name for row in rows for name in row) if name]
    found = {name: np.array([row.get(name, math.nan) for row in rows], np.float64) for name in names}
    _derive(found, [row[""] for row in rows])
    return found


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
