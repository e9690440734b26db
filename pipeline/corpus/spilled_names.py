"""What a listing has found so far, on disk: a file for every folder that is listed, and a record of which corpus is being listed.

In:  names of a folder of a store, as they come; where a store lists in pages, a folder has a file for every 65,536 names.
Out: the same names sorted, streamed. A listing that is interrupted goes on with what is here; one that ends removes it.

A store does not say whether it has changed, so what is here serves only to end the listing that was interrupted: one of the same
`corpus` section that began less than a day ago. Any other begins anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count, islice, takewhile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import xxhash

from cluster.runtime.atomic_files import DamagedFile, read_json, write_json
from cluster.tables import table_writer
from pipeline.config import CorpusConfig

SCHEMA = pa.schema([("name", pa.binary()), ("folder", pa.bool_())])
"""Names as bytes: some are not UTF-8."""
ROWS = 1 << 16
"""Names in memory at a time."""
RECORD, FORMAT = "listing.json", 1
AGE = 24 * 3600.0
"""Seconds after which an interrupted listing begins anew."""

Entry = tuple[str, bool]
"""A name, and whether it is of a folder."""


class SpilledNames:
    """The names of an unfinished listing. Calls for different folders may come from different threads."""

    def __init__(self, path: Path, entry: str = "") -> None:
        """entry: of corpus.videos; two of them may name folders alike in different stores."""
        self.path, self._entry = path, entry
        path.mkdir(parents=True, exist_ok=True)

    @classmethod
    def of(cls, path: Path, config: CorpusConfig) -> SpilledNames:
        """Open what an interrupted listing of this corpus has left; what is of another one, or old, is removed."""
        corpus = config.model_dump(mode="json")
        try:
            plain = read_json(path / RECORD)
        except (FileNotFoundError, DamagedFile):
            plain = {}
        known = isinstance(plain, dict) and (plain.get("format"), plain.get("corpus")) == (FORMAT, corpus)
        if not known or not 0 <= time.time() - float(plain["began"]) < AGE:
            shutil.rmtree(path, ignore_errors=True)
            write_json(path / RECORD, {"format": FORMAT, "corpus": corpus, "began": time.time()})
        made = cls(path)
        if made.files:
            print(
                f"corpus: a listing that was interrupted goes on, {made.files} folders or parts of them are listed; "
                f"to list anew, remove {path}",
                flush=True,
            )
        return made

    def within(self, entry: str) -> SpilledNames:
        """Return what is kept of one entry of corpus.videos."""
        return SpilledNames(self.path, entry)

    @property
    def files(self) -> int:
        """Number of folders, and of parts of large ones, that are listed."""
        return sum(1 for _ in self.path.glob("*.parquet"))

    def rows(self, kind: str, folder: str) -> int | None:
        """Return how many names are known of a folder, None if it is not listed. kind: what of it, such as `ls` or `find`."""
        try:
            return int(pq.read_metadata(self._file(kind, folder)).num_rows)
        except (FileNotFoundError, pa.ArrowInvalid):
            return None  # a damaged file is listed anew

    def write(self, kind: str, folder: str, entries: Iterable[Entry]) -> int:
        """Keep the names of a folder, sorted, and return their number. Raises DiskFull."""
        held = iter(sorted(set(entries)))
        return table_writer.write_file(self._file(kind, folder), SCHEMA, _tables(held)).rows

    def write_pages(
        self, kind: str, folder: str, pages: Callable[[str], Iterable[Sequence[Entry]]], said: Callable[[int], None]
    ) -> int:
        """Keep the names of a folder that come sorted, ROWS at a time; what is here of them already is not asked for again.

        pages: the pages after a name, "" for all. said: told the number of names whenever some are on disk. Returns the number of
        all. Raises DiskFull, and what the pages raise.
        """
        number, rows, last = 0, 0, ""
        while (known := self.rows(_part(kind, number), folder)) is not None:
            number, rows = number + 1, rows + known
        if number:
            *_, (last, _folder) = self._entries(self._file(_part(kind, number - 1), folder))
        self.forget(kind, folder, number)  # what follows a damaged part
        said(rows)
        held: list[Entry] = []
        for page in pages(last):
            held += page
            if len(held) >= ROWS:
                rows += self.write(_part(kind, number), folder, held)
                said(len(held))
                number, held = number + 1, []
        said(len(held))
        return rows + self.write(kind, folder, held)

    def read(self, kind: str, folder: str) -> Iterator[Entry]:
        """Yield the names of a folder, sorted. Raises DamagedFile."""
        parts = (self._file(_part(kind, number), folder) for number in count())
        last: Entry | None = None
        for path in (*takewhile(Path.exists, parts), self._file(kind, folder)):
            for entry in self._entries(path):
                if entry != last:  # a folder's name may come at the end of a part and again at the next one's begin
                    yield entry
                last = entry

    def _entries(self, path: Path) -> Iterator[Entry]:
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(ROWS, use_threads=False):
                    names = [name.decode("utf-8", "surrogatepass") for name in batch["name"].to_pylist()]
                    yield from zip(names, batch["folder"].to_pylist(), strict=True)
        except (FileNotFoundError, pa.ArrowException, OSError) as error:
            raise DamagedFile(
                f"{path}: damaged ({' '.join(str(error).split())}); remove {path.parent} and run again"
            ) from error

    def forget(self, kind: str, folder: str, part: int = 0) -> None:
        """Remove what is known of a folder, from one of its parts on."""
        for number in count(part):
            path = self._file(_part(kind, number), folder)
            if not path.exists():
                break
            path.unlink()
        self._file(kind, folder).unlink(missing_ok=True)

    def remove(self) -> None:
        """Remove all of it: the listing has ended. The record goes last, so that a kill leaves nothing without one."""
        for path in self.path.glob("*.parquet"):
            path.unlink()
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, kind: str, folder: str) -> Path:
        key = json.dumps([self._entry, kind, folder])
        return self.path / f"{xxhash.xxh3_128_hexdigest(key.encode())}.parquet"


def _part(kind: str, number: int) -> str:
    """Return how a part of a folder's names is kept, before the last one, which is kept under the kind alone."""
    return f"{kind} {number}"


def _tables(entries: Iterator[Entry]) -> Iterator[pa.Table]:
    while some := list(islice(entries, ROWS)):
        names = [name.encode("utf-8", "surrogatepass") for name, _ in some]
        yield pa.table([names, [folder for _, folder in some]], schema=SCHEMA)
