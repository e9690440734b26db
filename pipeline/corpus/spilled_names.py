"""What a listing has found so far, on disk: a file for every folder that is listed, and a record of which corpus is being listed.

In:  names of a folder of a store, as they come.
Out: the same names sorted, streamed. A listing that is interrupted goes on with what is here; one that ends removes it.

A store does not say whether it has changed, so what is here serves only to end the listing that was interrupted: one of the same
`corpus` section that began less than a day ago. Any other begins anew.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterable, Iterator
from itertools import islice
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
        if count := made.files:
            print(
                f"corpus: a listing that was interrupted goes on, {count} folders are listed; to list anew, remove {path}",
                flush=True,
            )
        return made

    def within(self, entry: str) -> SpilledNames:
        """Return what is kept of one entry of corpus.videos."""
        return SpilledNames(self.path, entry)

    @property
    def files(self) -> int:
        """Number of folders that are listed."""
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

    def read(self, kind: str, folder: str) -> Iterator[Entry]:
        """Yield the names of a folder, sorted. Raises DamagedFile."""
        path = self._file(kind, folder)
        try:
            with pq.ParquetFile(path, page_checksum_verification=True) as file:
                for batch in file.iter_batches(ROWS, use_threads=False):
                    names = [name.decode("utf-8", "surrogatepass") for name in batch["name"].to_pylist()]
                    yield from zip(names, batch["folder"].to_pylist(), strict=True)
        except (FileNotFoundError, pa.ArrowException, OSError) as error:
            raise DamagedFile(
                f"{path}: damaged ({' '.join(str(error).split())}); remove {path.parent} and run again"
            ) from error

    def remove(self) -> None:
        """Remove all of it: the listing has ended. The record goes last, so that a kill leaves nothing without one."""
        for path in self.path.glob("*.parquet"):
            path.unlink()
        shutil.rmtree(self.path, ignore_errors=True)

    def _file(self, kind: str, folder: str) -> Path:
        key = json.dumps([self._entry, kind, folder])
        return self.path / f"{xxhash.xxh3_128_hexdigest(key.encode())}.parquet"


def _tables(entries: Iterator[Entry]) -> Iterator[pa.Table]:
    while some := list(islice(entries, ROWS)):
        names = [name.encode("utf-8", "surrogatepass") for name, _ in some]
        yield pa.table([names, [folder for _, folder in some]], schema=SCHEMA)
