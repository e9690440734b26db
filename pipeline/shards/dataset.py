"""A finished SHARDS folder, opened for reading: buckets, rows in a fixed order, samples by number.

In:  a folder with dataset.json and index.parquet; or its URL, and a local folder that caches what is read of it.
Out: `ShardDataset`. Needs neither torch nor ray.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import read_json
from pipeline.records import Bucket, TokenSample
from pipeline.shards.layout import DATASET, EXCLUDED, FORMAT, INDEX, META, DatasetError, excluded
from pipeline.shards.reader import Member, read_bits, read_features, read_sample_at
from tokenizer.quantization.codec_spec import CodecSpec

if TYPE_CHECKING:
    from pipeline.shards.remote_cache import ShardCache

_OPEN_TARS = 256
"""Tars that a dataset keeps open; the least recently used ones are closed."""


class _Tar:
    """An open tar; closed when its last reader drops it, so that eviction never closes it during a read."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class ShardDataset:
    """Committed samples of a SHARDS folder, in the order of index.parquet. Reads are thread-safe."""

    def __init__(
        self, folder: Path, info: dict[str, Any], table: pa.Table, digest: str, cache: ShardCache | None = None
    ) -> None:
        self._cache = cache
        self.folder, self.info, self.digest = folder, info, digest
        self.spec = CodecSpec.parse(info["spec"])
        self.fps = float(info["fps"])
        self._table = table
        self._rows: dict[str, pa.Table] = {}
        self._cells: dict[Bucket, _Cells] = {}
        self._tars: OrderedDict[str, _Tar] = OrderedDict()
        self._lock = threading.Lock()

    @classmethod
    def open(cls, folder: str | Path, cache: Path | None = None, limit: int = 0) -> ShardDataset:
        """Open a folder. Raises DatasetError if it is missing, unfinished, damaged or of another format.

        A URL needs `cache`, a local folder in which at most `limit` bytes of tars are kept.
        """
        held = None
        if "://" in str(folder):
            held, folder = _remote(str(folder), cache, limit)
        folder = Path(folder)
        if not folder.is_dir():
            raise DatasetError(f"{folder}: no such folder; make shards with `videoar tokenize`")
        try:
            info = json.loads((folder / DATASET).read_text())
        except FileNotFoundError as error:
            raise DatasetError(f"{folder}: no {DATASET}, so it holds no shards; make them with `videoar tokenize`") from error
        except json.JSONDecodeError as error:
            raise DatasetError(f"{folder / DATASET}: not valid JSON: {error}") from error
        if info.get("format") != FORMAT:
            raise DatasetError(f"{folder}: format {info.get('format')}; this program reads format {FORMAT}")
        try:
            table = pq.read_table(folder / INDEX)
            digest = json.loads((table.schema.metadata or {})[META])["digest"]
        except FileNotFoundError as error:
            raise DatasetError(
                f"{folder}: no {INDEX}: the job has not finished; run the same `videoar tokenize` again"
            ) from error
        except (pa.ArrowInvalid, KeyError, OSError) as error:
            raise DatasetError(
                f"{folder / INDEX}: damaged ({error}); delete it and run the same `videoar tokenize` again"
            ) from error
        gone = excluded(folder)
        if gone:
            # With other rows it is another dataset: whoever has stored the digest must notice.
            digest = hashlib.sha256(json.dumps([digest, gone]).encode()).hexdigest()
        return cls(folder, info, _without(table, gone), digest, held)

    def __len__(self) -> int:
        return int(self._table.num_rows)

    def buckets(self) -> list[Bucket]:
        """Return the buckets that hold samples, sorted by name."""
        return [Bucket.parse(name) for name in sorted(pc.unique(self._table["bucket"]).to_pylist())]

    def rows(self, bucket: Bucket) -> pa.Table:
        """Return the rows of one bucket in shard order (columns: pipeline.shards.schemas.ROWS)."""
        if bucket.name not in self._rows:
            self._rows[bucket.name] = self._table.filter(pc.equal(self._table["bucket"], bucket.name)).combine_chunks()
        return self._rows[bucket.name]

    def read(self, bucket: Bucket, number: int, *, meta: bool = True) -> TokenSample:
        """Read sample `number` of a bucket and check every byte that is read.

        Without `meta`, KEY.json and KEY.txt are not read and the caption is taken from the index. Training reads this way, tens of
        thousands of samples per second, so that path is short.
        Raises IndexError for a number out of range, CorruptSample (naming shard and key) for damaged bytes, DatasetError for a
        missing tar.
        """
        cells = self._cells.get(bucket)
        if cells is None:
            cells = self._cells[bucket] = _Cells(self.rows(bucket))
        if not 0 <= number < cells.count:
            raise IndexError(f"bucket {bucket.name} has {cells.count} samples; asked for number {number}")
        shard = cells.shards[cells.shard[number]]
        tar = self._tar(shard)
        if meta:
            row = self.rows(bucket).slice(number, 1).to_pylist()[0]
            return read_sample_at(tar.fd, row, shard=shard)
        cell = cells.cell
        key = cell("key", number)
        member = Member(cell("bits_offset", number), cell("bits_size", number), cell("bits_xxh3", number))
        bits = read_bits(tar.fd, member, cell("bits_raw", number), shard=shard, key=key)
        features = None
        if cell("feat_offset", number) is not None:
            member = Member(cell("feat_offset", number), cell("feat_size", number), cell("feat_xxh3", number))
            features = read_features(tar.fd, member, shard=shard, key=key)
        return TokenSample(key, bits, bucket, cell("caption", number) or "", {}, features)

    def _tar(self, shard: str) -> _Tar:
        with self._lock:
            if shard not in self._tars:
                try:
                    self._tars[shard] = self._opened(f"{shard}.tar")
                except OSError as error:
                    raise DatasetError(
                        f"{self.folder / shard}.tar: {error.strerror or error}; `videoar shards verify` lists what is missing"
                    ) from error
                if len(self._tars) > _OPEN_TARS:
                    self._tars.popitem(last=False)
            self._tars.move_to_end(shard)
            return self._tars[shard]

    def _opened(self, name: str) -> _Tar:
        if self._cache is None:
            return _Tar(self.folder / name)
        while True:
            try:
                opened = _Tar(self._cache.get(name))
                break
            except FileNotFoundError:
                # Another rank may have evicted it in between; a file that the store lacks is another case.
                if not self._cache.has(name):
                    raise
        # Evicted tars are closed, so that their space is freed.
        for shard in [shard for shard, tar in self._tars.items() if os.fstat(tar.fd).st_nlink == 0]:
            del self._tars[shard]
        return opened


def _remote(url: str, cache: Path | None, limit: int) -> tuple[ShardCache, Path]:
    """Fetch the files that describe the dataset behind a URL. Returns the cache of its shards and the local folder."""
    from pipeline.shards.remote_cache import ShardCache

    if cache is None:
        raise DatasetError(f"{url}: shards in an object store are read through a local folder: set curriculum.cache")
    try:
        held = ShardCache(url, cache, limit)
        for name in (DATASET, INDEX, EXCLUDED):
            held.refresh(name)
    except (ImportError, ValueError, OSError) as error:
        raise DatasetError(f"{url}: cannot be opened: {error}") from error
    held.folder.mkdir(parents=True, exist_ok=True)
    return held, held.folder


class _Cells:
    """Single cells of one bucket's rows: numbers are taken from numpy arrays, several times cheaper than from Arrow columns."""

    _NUMBERS = ("bits_offset", "bits_size", "bits_raw", "feat_offset", "feat_size")
    _TEXTS = ("key", "bits_xxh3", "feat_xxh3", "caption")

    def __init__(self, rows: pa.Table) -> None:
        self.count = int(rows.num_rows)
        shard = rows.column("shard").combine_chunks().dictionary_encode()
        self.shards: list[str] = shard.dictionary.to_pylist()
        self.shard = shard.indices.to_numpy()
        self._numbers: dict[str, Any] = {}
        self._texts: dict[str, Any] = {}
        for name in (*self._NUMBERS, *self._TEXTS):
            cells = rows.column(name).combine_chunks()
            if name in self._NUMBERS and not cells.null_count:
                self._numbers[name] = cells.to_numpy()
            elif cells.null_count < len(cells):
                self._texts[name] = cells

    def cell(self, name: str, number: int) -> Any:
        """Return one cell; None if it is empty."""
        if name in self._numbers:
            return int(self._numbers[name][number])
        cells = self._texts.get(name)
        return None if cells is None else cells[number].as_py()


def _without(table: pa.Table, gone: list[str]) -> pa.Table:
    if not gone:
        return table
    mask = pc.is_in(table["source"], value_set=pa.array([name for name in gone if not name.endswith("/")], pa.string()))
    for name in gone:
        if name.endswith("/"):
            mask = pc.or_(mask, pc.starts_with(table["source"], name))
    return table.filter(pc.invert(mask))


def open_folder(folder: Path) -> tuple[dict[str, Any], CodecSpec]:
    """Return dataset.json and the codec's spec, of a folder that may be unfinished. Raises DatasetError for one not yet planned."""
    try:
        info = read_json(folder / DATASET)
    except FileNotFoundError as error:
        raise DatasetError(f"{folder}: no {DATASET}, so it holds no shards; make them with `videoar tokenize`") from error
    if not (folder / "clips.parquet").exists():
        raise DatasetError(f"{folder}: no clips.parquet: planning has not finished; run the same `videoar tokenize` again")
    return info, CodecSpec.parse(info["spec"])
