"""A finished SHARDS folder, opened for reading: buckets, shards in a fixed order, samples by number.

In:  a folder with dataset.json and the index; or its URL, and a local folder that caches what is read of it.
Out: `ShardDataset`. Needs neither torch nor ray.

Opening reads the list of shards; the rows of a shard are read when its samples are asked for.
"""

from __future__ import annotations

import hashlib
import json
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from cluster.runtime.atomic_files import read_json
from cluster.tables import table_list
from cluster.tables.table_list import LIST
from pipeline.records import Bucket, TokenSample
from pipeline.shards.layout import CLIPS, DATASET, EXCLUDED, FORMAT, HIDDEN, INDEX, SHARD_LIST, DatasetError, excluded
from pipeline.shards.reader import Member, Numbers, read_bits, read_features, read_members, read_sample_at
from pipeline.shards.sample_window import Places, SampleWindow
from pipeline.shards.schemas import ROWS
from pipeline.shards.shard_tables import ShardTables
from tokenizer.quantization.codec_spec import CodecSpec

if TYPE_CHECKING:
    from pipeline.shards.remote_cache import ShardCache

_OPEN_TARS = 256
"""Tars that a dataset keeps open; the least recently used ones are closed."""


Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Payload:
    """The checked bytes of many samples, a row for each."""

    bits: Bytes
    features: Bytes | None
    """None unless all of the samples have features."""


class _Tar:
    """An open tar; closed when its last reader drops it, so that eviction never closes it during a read."""

    def __init__(self, path: Path) -> None:
        self.fd = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "fd"):
            os.close(self.fd)


class ShardDataset:
    """Committed samples of a SHARDS folder, in the order of the index. Reads are thread-safe."""

    def __init__(self, folder: Path, info: dict[str, Any], gone: Sequence[str], cache: ShardCache | None = None) -> None:
        self.folder, self.info, self._cache = folder, info, cache
        self.spec = CodecSpec.parse(info["spec"])
        self.fps = float(info["fps"])
        self._tables = ShardTables(folder, gone, cache)
        self.digest = self._tables.digest
        if gone:
            # With other rows it is another dataset: whoever has stored the digest must notice.
            self.digest = hashlib.sha256(json.dumps([self.digest, list(gone)]).encode()).hexdigest()
        self._windows = {
            name: SampleWindow(self._tables, shards, features=bool(info.get("features", True)))
            for name, shards in self._tables.lists.items()
        }
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
        return cls(folder, info, excluded(folder), held)

    def __len__(self) -> int:
        return sum(shards.size for shards in self._tables.lists.values())

    def buckets(self) -> list[Bucket]:
        """Return the buckets that hold samples, sorted by name."""
        return [Bucket.parse(name) for name in self._tables.lists]

    def shard_rows(self, bucket: Bucket) -> Numbers:
        """Return the number of samples of each shard of a bucket, in shard order."""
        shards = self._tables.lists.get(bucket.name)
        return np.empty(0, np.int64) if shards is None else shards.rows

    def rows(self, bucket: Bucket) -> pa.Table:
        """Return all rows of one bucket in shard order (columns: pipeline.shards.schemas.ROWS). They are read at each call."""
        shards = self._tables.lists.get(bucket.name)
        return ROWS.empty_table() if shards is None else self._tables.read(shards, range(len(shards.rows)))

    def column(self, bucket: Bucket, name: str) -> Iterator[pa.Array]:
        """Yield the cells of a column of a bucket's rows in shard order, a part at a time."""
        shards = self._tables.lists.get(bucket.name)
        return iter(()) if shards is None else self._tables.column(shards, name)

    def contents(self, bucket: Bucket) -> str:
        """Return the sha256 of a bucket's samples in their order: its shards, the digests of their tars, and which samples are gone."""
        shards = self._tables.lists.get(bucket.name)
        return "" if shards is None else self._tables.contents(shards)

    def hold(self, bucket: Bucket, shards: int) -> None:
        """Hold the rows of at least this many shards of a bucket: as many as are read at a time."""
        window = self._windows[bucket.name]
        window.capacity = max(window.capacity, shards)

    def find(self, bucket: Bucket, numbers: Numbers) -> Places:
        """Return keys, captions and places of many samples of a bucket."""
        return self._windows[bucket.name].find(numbers)

    def read_many(self, places: Places, size: int, features: int) -> Payload | None:
        """Read the first `size` bytes of the bits of many samples, and `features` bytes of their features if all have them.

        Every byte is checked as `read` checks it. Returns None if any sample is damaged or shorter: `read` tells which, and how.
        Raises DatasetError for a missing tar.
        """
        tars = {shard: self._tar(shard) for shard in set(places.shards)}
        fds = [tars[shard].fd for shard in places.shards]

        def read(member: str, raw: Numbers, count: int) -> Bytes | None:
            offsets, sizes = places.number(f"{member}_offset"), places.number(f"{member}_size")
            found = read_members(fds, offsets, sizes, places.text(f"{member}_xxh3"), raw)
            return None if found is None else _rows(found, count)

        bits = read("bits", places.number("bits_raw"), size)
        if bits is None or not places.have_features:
            return None if bits is None else Payload(bits, None)
        values = read("feat", np.empty(0, np.int64), features)
        return None if values is None else Payload(bits, values)

    def read(self, bucket: Bucket, number: int, *, meta: bool = True) -> TokenSample:
        """Read sample `number` of a bucket and check every byte that is read.

        Without `meta`, KEY.json and KEY.txt are not read and the caption is taken from the index.
        Raises IndexError for a number out of range, CorruptSample (naming shard and key) for damaged bytes, DatasetError for a
        missing tar.
        """
        window = self._windows.get(bucket.name)
        count = 0 if window is None else window.shards.size
        if window is None or not 0 <= number < count:
            raise IndexError(f"bucket {bucket.name} has {count} samples; asked for number {number}")
        at = np.array([number])
        (index,), (within,) = window.shards.find(at)
        shard = str(window.shards.names[index])
        tar = self._tar(shard)
        if meta:
            row = self._tables.read(window.shards, [index]).slice(within, 1).to_pylist()[0]
            return read_sample_at(tar.fd, row, shard=shard)
        places = window.find(at)
        key, caption = places.text("key")[0], places.text("caption")[0]
        bits = read_bits(tar.fd, _member(places, "bits"), int(places.number("bits_raw")[0]), shard=shard, key=key)
        features = None
        if places.have_features:
            features = read_features(tar.fd, _member(places, "feat"), shard=shard, key=key)
        return TokenSample(key, bits, bucket, caption or "", {}, features)

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
        for name in (DATASET, EXCLUDED, HIDDEN, f"{INDEX}/{SHARD_LIST}", f"{INDEX}/{LIST}"):
            listed = held.refresh(name)
        if not listed:
            held.refresh(f"{INDEX}.parquet")  # books of format 1
    except (ImportError, ValueError, OSError) as error:
        raise DatasetError(f"{url}: cannot be opened: {error}") from error
    held.folder.mkdir(parents=True, exist_ok=True)
    return held, held.folder


def _member(places: Places, name: str) -> Member:
    """Return where a member of the first of some samples lies."""
    offset, size = places.number(f"{name}_offset"), places.number(f"{name}_size")
    return Member(int(offset[0]), int(size[0]), places.text(f"{name}_xxh3")[0])


def _rows(found: Sequence[Any], count: int) -> Bytes | None:
    """Return the first `count` bytes of each buffer as an array of rows; None if one is shorter."""
    sizes = set(map(len, found))
    if min(sizes) < count:
        return None
    if len(sizes) == 1:
        rows = np.frombuffer(bytearray().join(found), dtype=np.uint8).reshape(len(found), -1)
        return rows if rows.shape[1] == count else rows[:, :count].copy()
    return np.stack([np.frombuffer(part, dtype=np.uint8, count=count) for part in found])


def open_folder(folder: Path) -> tuple[dict[str, Any], CodecSpec]:
    """Return dataset.json and the codec's spec, of a folder that may be unfinished. Raises DatasetError for one not yet planned."""
    try:
        info = read_json(folder / DATASET)
    except FileNotFoundError as error:
        raise DatasetError(f"{folder}: no {DATASET}, so it holds no shards; make them with `videoar tokenize`") from error
    if not table_list.exists(folder / CLIPS):
        raise DatasetError(f"{folder}: no table of clips: planning has not finished; run the same `videoar tokenize` again")
    return info, CodecSpec.parse(info["spec"])
