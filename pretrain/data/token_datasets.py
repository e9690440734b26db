"""The token datasets of a run, opened and joined: rows by stream, samples by slot, one digest.

In:  folders or URLs of token shards (pipeline.shards.dataset.ShardDataset, which leaves out what excluded.json lists).
Out: the sources that sample_order.py draws from; keys, captions and `TokenSample`s by slot; the digest that train states keep.

The exclusion list is read once, when a run starts. The digest covers the keys that remain, so a run that is resumed after the list
or the index changed is refused, unless train.accept_new_data says that the order may change from here on.
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
from pretrain.data.sample_order import SampleSource, Slot
from tokenizer.quantization.codec_spec import CodecSpec


class DataError(ValueError):
    """Token shards that cannot be trained on; the message names the folder and how to fix it."""


class Dataset(Protocol):
    """What training needs of pipeline.shards.dataset.ShardDataset."""

    @property
    def spec(self) -> CodecSpec: ...  # noqa: D102
    @property
    def digest(self) -> str: ...  # noqa: D102
    @property
    def fps(self) -> float: ...  # noqa: D102
    def buckets(self) -> list[Bucket]: ...  # noqa: D102
    def rows(self, bucket: Bucket) -> Any: ...  # noqa: D102
    def read(self, bucket: Bucket, row: int, *, meta: bool = True) -> TokenSample: ...  # noqa: D102


@dataclass(frozen=True)
class _Rows:
    """The rows of one bucket in one dataset."""

    dataset: int
    """Its number among the datasets."""
    shards: tuple[int, ...]
    """Rows of each shard, in order."""
    keys: Any
    """Arrow array of strings, as the captions and the checksums of the bits are."""
    captions: Any
    checksums: Any

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
            checksums=table.column("bits_xxh3").combine_chunks(),
        )


class _JoinedRows:
    """Rows of several datasets, numbered consecutively."""

    def __init__(self, parts: list[_Rows]) -> None:
        self.parts = parts
        self._ends = list(accumulate(rows.size for rows in parts))
        self.size = self._ends[-1]

    def find(self, row: int) -> tuple[_Rows, int]:
        """Return the dataset's rows and the row number among them."""
        part = bisect_right(self._ends, row)
        return self.parts[part], row - (self._ends[part - 1] if part else 0)


class TokenDatasets:
    """The datasets of one run, by stream of its curriculum."""

    def __init__(self, datasets: Mapping[Path | str, Dataset], curriculum: Streams, weights: Sequence[float] = ()) -> None:
        """Raise DataError if the datasets do not fit each other or the curriculum."""
        if weights and len(weights) != len(datasets):
            raise DataError(
                f"curriculum.weights names {len(weights)} weights for {len(datasets)} datasets in curriculum.shards"
            )
        self.folders = tuple(datasets)
        self._datasets = tuple(datasets.values())
        self._weights = tuple(weights)
        self.spec = self._common_spec()
        self._buckets = {name: Bucket.parse(name) for name, _ in curriculum.streams()}
        self._sources = {name: self._open_sources(bucket) for name, bucket in self._buckets.items()}
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
    ) -> TokenDatasets:
        """Open folders or URLs of token shards, URLs through a local cache.

        Raises DataError, or pipeline.shards.layout.DatasetError for a missing or unfinished index.
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

    def _open_sources(self, bucket: Bucket) -> list[_JoinedRows]:
        """Return the rows of a bucket: of all datasets joined, or of each dataset alone if they are weighted."""
        parts = []
        for number, dataset in enumerate(self._datasets):
            if bucket.name in {each.name for each in dataset.buckets()}:
                rows = _Rows.of(number, dataset.rows(bucket))
                if rows.size:
                    parts.append(rows)
        if not parts:
            known = sorted({each.name for dataset in self._datasets for each in dataset.buckets()})
            raise DataError(
                f"curriculum: bucket {bucket.name} has no samples in {', '.join(map(str, self.folders))}; "
                f"buckets there: {', '.join(known) or 'none'}. Tokenize it (pipeline.buckets) or change the stage's mix"
            )
        return [_JoinedRows([rows]) for rows in parts] if self._weights else [_JoinedRows(parts)]

    def _digest(self) -> str:
        """Return the sha256 of all that the order of samples depends on: datasets, weights, and the keys in their order."""
        digest = hashlib.sha256(repr(([dataset.digest for dataset in self._datasets], self._weights)).encode())
        for name, sources in sorted(self._sources.items()):
            for source in sources:
                for rows in source.parts:
                    digest.update(f"{name}:{rows.dataset}:{rows.shards}".encode())
                    digest.update("\n".join(rows.keys.to_pylist()).encode())
        return digest.hexdigest()

    def contents(self) -> dict[str, str]:
        """Return for each bucket in use the sha256 of its samples in their order: shards, keys, captions, checksums of the bits."""
        found = {}
        for name, sources in self._sources.items():
            digest = hashlib.sha256()
            for source in sources:
                for rows in source.parts:
                    digest.update(f"{rows.dataset}:{rows.shards}".encode())
                    for column in (rows.keys, rows.captions, rows.checksums):
                        digest.update("\n".join(map(str, column.to_pylist())).encode())
            found[name] = digest.hexdigest()
        return found

    def sources(self, stream: StreamName) -> list[SampleSource]:
        """Return the sources of a stream: all datasets joined, or one for each dataset if curriculum.weights is set."""
        return [
            SampleSource(
                number=number,
                shards=tuple(size for rows in source.parts for size in rows.shards),
                weight=self._weights[source.parts[0].dataset] if self._weights else 1.0,
            )
            for number, source in enumerate(self._sources[stream[0]])
        ]

    @property
    def fps(self) -> float:
        """Frames per second of the clips (of the first dataset, if they differ)."""
        return self._datasets[0].fps

    def key(self, stream: StreamName, slot: Slot) -> str:
        """Return the sample key of a slot."""
        rows, number = self._find(stream, slot)
        return str(rows.keys[number])

    def caption(self, stream: StreamName, slot: Slot) -> str:
        """Return the caption of a slot."""
        rows, number = self._find(stream, slot)
        return rows.captions[number].as_py() or ""

    def rows(self, stream: StreamName, source: int) -> int:
        """Return the number of rows in one source of the stream."""
        return self._sources[stream[0]][source].size

    def read(self, stream: StreamName, slot: Slot) -> TokenSample:
        """Read one sample. Raises pipeline.shards.reader.CorruptSample if it is damaged."""
        rows, number = self._find(stream, slot)
        return self._datasets[rows.dataset].read(self._buckets[stream[0]], number, meta=False)

    def grid(self, stream: StreamName) -> tuple[int, int, int]:
        """Return (latent frames, rows, columns) of a stream's samples. Raises ValueError for frames that the tokenizer cannot cut at."""
        bucket = self._buckets[stream[0]]
        return self.spec.grid(stream[1] or bucket.frames, bucket.height, bucket.width)

    def _find(self, stream: StreamName, slot: Slot) -> tuple[_Rows, int]:
        return self._sources[stream[0]][slot.source].find(slot.row)
