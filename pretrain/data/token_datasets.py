"""The token datasets of a run, opened and joined: rows by stream, samples by slot, one digest.

In:  SHARDS folders or URLs (pipeline.index.ShardDataset, which leaves out what SHARDS/excluded.json lists).
Out: `Source` lists for order.py; captions, keys and `TokenSample`s for loader.py; the data digest for state.py.
Called by: loader.py, train.py, evaluate.py.

The exclusion list is read once, when a run starts. The data digest covers the keys that are left, so a run that is resumed
after the list (or the index) changed is refused unless train.accept_new_data says that the order may change from here on.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any, Protocol

from pipeline.records import Bucket, TokenSample
from pretrain.data.curriculum import StreamName, Streams
from pretrain.data.sample_order import Slot, Source
from tokenizer.quantization.codec_spec import CodecSpec


class DataError(ValueError):
    """Token shards that cannot be trained on; the message names the folder and the mend."""


class Dataset(Protocol):
    """What training needs of pipeline.index.ShardDataset."""

    @property
    def spec(self) -> CodecSpec: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    def buckets(self) -> list[Bucket]: ...  # noqa: D102
    def rows(self, bucket: Bucket) -> Any: ...  # noqa: D102
    def read(self, bucket: Bucket, row: int, *, meta: bool = True) -> TokenSample: ...  # noqa: D102


@dataclass(frozen=True)
class _Rows:
    """One bucket of one dataset."""

    dataset: int
    shards: tuple[int, ...]
    """Rows of each shard, in order."""
    keys: Any
    """Arrow array of strings."""
    captions: Any

    @property
    def size(self) -> int:
        return sum(self.shards)

    @classmethod
    def of(cls, dataset: int, table: Any) -> _Rows:
        names = table.column("shard").to_pylist()
        shards = tuple(len(list(group)) for _, group in groupby(names))
        return cls(
            dataset=dataset,
            shards=shards,
            keys=table.column("key").combine_chunks(),
            captions=table.column("caption").combine_chunks(),
        )


class _Pool:
    """Datasets whose rows are numbered through."""

    def __init__(self, parts: list[_Rows]) -> None:
        self.parts = parts
        self._ends = list(accumulate(rows.size for rows in parts))
        self.size = self._ends[-1]

    def find(self, row: int) -> tuple[_Rows, int]:
        """Return the dataset's rows and the row number among them."""
        part = bisect_right(self._ends, row)
        return self.parts[part], row - (self._ends[part - 1] if part else 0)


class Corpus:
    """Datasets of one run. Raises DataError when they do not fit each other or the curriculum."""

    def __init__(self, datasets: Mapping[Path | str, Dataset], curriculum: Streams, weights: Sequence[float] = ()) -> None:
        if weights and len(weights) != len(datasets):
            raise DataError(
                f"curriculum.weights names {len(weights)} weights for {len(datasets)} datasets in curriculum.shards"
            )
        self.folders = tuple(datasets)
        self._datasets = tuple(datasets.values())
        self._weights = tuple(weights)
        self.spec = self._common_spec()
        self._buckets = {name: Bucket.parse(name) for name, _ in curriculum.streams()}
        self._pools: dict[str, list[_Pool]] = {}
        for name in self._buckets:
            parts_of = []
            for number, dataset in enumerate(self._datasets):
                if name in {bucket.name for bucket in dataset.buckets()}:
                    rows = _Rows.of(number, dataset.rows(self._buckets[name]))
                    if rows.size:
                        parts_of.append(rows)
            if not parts_of:
                known = sorted({bucket.name for dataset in self._datasets for bucket in dataset.buckets()})
                raise DataError(
                    f"curriculum: bucket {name} has no samples in {', '.join(map(str, self.folders))}; "
                    f"buckets there: {', '.join(known) or 'none'}. Tokenize it (pipeline.buckets) or change the stage's mix"
                )
            self._pools[name] = [_Pool([rows]) for rows in parts_of] if self._weights else [_Pool(parts_of)]

        self.digest = self._digest()

    @classmethod
    def open(
        cls,
        folders: Sequence[Path | str],
        curriculum: Streams,
        weights: Sequence[float] = (),
        *,
        cache: Path | None = None,
        cache_gb: float = 0.0,
    ) -> Corpus:
        """Open SHARDS folders or URLs, the latter through a local cache.

        Raises DataError, or pipeline.index.DatasetError for a missing or unfinished index.
        """
        from pipeline.shards.dataset import ShardDataset

        if not folders:
            raise DataError("no token shards: set curriculum.shards, or pipeline.output")
        limit = int(cache_gb * 1e9)
        return cls({folder: ShardDataset.open(folder, cache, limit) for folder in folders}, curriculum, weights)

    def _common_spec(self) -> CodecSpec:
        spec = self._datasets[0].spec
        for folder, dataset in zip(self.folders, self._datasets):
            if dataset.spec != spec:
                raise DataError(
                    f"{folder}: shards of another tokenizer ({dataset.spec.digest[:12]}) than {self.folders[0]} "
                    f"({spec.digest[:12]}); tokenize both with one tokenizer, or train on one of them"
                )
        return spec

    def _digest(self) -> str:
        """The sha256 over all that the order depends on: datasets, weights, and the keys in their order."""
        digest = hashlib.sha256(repr(([dataset.digest for dataset in self._datasets], self._weights)).encode())
        for name, pools in sorted(self._pools.items()):
            for pool in pools:
                for rows in pool.parts:
                    digest.update(f"{name}:{rows.dataset}:{rows.shards}".encode())
                    digest.update("\n".join(rows.keys.to_pylist()).encode())
        return digest.hexdigest()

    def sources(self, stream: StreamName) -> list[Source]:
        """Return what shares an epoch: all datasets joined, or each alone when curriculum.weights is set."""
        return [
            Source(
                number=number,
                shards=tuple(size for rows in pool.parts for size in rows.shards),
                weight=self._weights[pool.parts[0].dataset] if self._weights else 1.0,
            )
            for number, pool in enumerate(self._pools[stream[0]])
        ]

    def key(self, stream: StreamName, slot: Slot) -> str:
        """Return the sample key of a slot."""
        rows, number = self._pools[stream[0]][slot.source].find(slot.row)
        return str(rows.keys[number])

    def caption(self, stream: StreamName, slot: Slot) -> str:
        """Return the caption of a slot."""
        rows, number = self._pools[stream[0]][slot.source].find(slot.row)
        return rows.captions[number].as_py() or ""

    def rows(self, stream: StreamName, source: int) -> int:
        """Return how many rows one source of the stream has."""
        return self._pools[stream[0]][source].size

    def read(self, stream: StreamName, slot: Slot) -> TokenSample:
        """Read one sample. Raises pipeline.shards.CorruptSample for one that is damaged."""
        rows, number = self._pools[stream[0]][slot.source].find(slot.row)
        return self._datasets[rows.dataset].read(self._buckets[stream[0]], number, meta=False)

    def grid(self, stream: StreamName) -> tuple[int, int, int]:
        """Return (latent frames, rows, columns) of a stream. Raises ValueError for frames that the tokenizer cannot cut at."""
        bucket = self._buckets[stream[0]]
        return self.spec.grid(stream[1] or bucket.frames, bucket.height, bucket.width)
