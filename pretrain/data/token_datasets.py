"""The token datasets of a run, opened and joined: rows by stream, samples by slot, one digest.

In:  folders or URLs of token shards (pipeline.shards.dataset.ShardDataset, which leaves out what excluded.json lists).
Out: the sources that sample_order.py draws from; keys, captions and packed bits of a draw; the digest that train states keep.

The exclusion list is read once, when a run starts. The digests cover the samples that remain, so a run that is resumed after the list
or the index changed is refused, unless train.accept_new_data says that the order may change from here on.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from cluster.config import ConfigError
from pipeline.records import Bucket, TokenSample
from pipeline.shards.dataset import Payload
from pipeline.shards.sample_window import Places
from pretrain.data import data_digest
from pretrain.data.curriculum import StreamName, Streams
from pretrain.data.data_digest import Part
from pretrain.data.dataset import Dataset
from pretrain.data.sample_order import Draw, Numbers, SampleSource, Slot
from tokenizer.quantization.codec_spec import CodecSpec


class DataError(ConfigError):
    """Token shards that cannot be trained on; the message names the folder and how to fix it."""


@dataclass(frozen=True)
class _Rows:
    """The rows of one bucket in one dataset."""

    dataset: int
    """Its number among the datasets."""
    shards: tuple[int, ...]
    """Rows of each shard, in order."""

    @cached_property
    def size(self) -> int:
        return sum(self.shards)


class _JoinedRows:
    """Rows of several datasets, numbered consecutively."""

    def __init__(self, parts: list[_Rows]) -> None:
        self.parts = parts
        self.datasets = np.array([rows.dataset for rows in parts])
        self._ends = np.cumsum([rows.size for rows in parts])
        self.size = int(self._ends[-1])

    def find(self, rows: Numbers) -> tuple[Numbers, Numbers]:
        """Return the dataset of each row, and the row's number in that dataset."""
        if len(self.parts) == 1:
            return np.full(len(rows), self.datasets[0]), rows
        part = np.searchsorted(self._ends, rows, side="right")
        return self.datasets[part], rows - np.concatenate([[0], self._ends])[part]


@dataclass(frozen=True)
class FoundBatch:
    """A global batch, looked up in the tables of its shards."""

    keys: list[str]
    """By slot."""
    captions: list[str]
    """By slot."""
    parts: list[tuple[Dataset, Numbers, Places]]
    """For each dataset, the slots that it holds, and where their samples are."""

    @property
    def mixed(self) -> bool:
        """Whether some samples have features, and others have none."""
        shares = [places.featured for _, _, places in self.parts]
        return 0 < sum(shares) < len(self.keys)


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
        self._streams = curriculum.streams()
        self._buckets = {name: Bucket.parse(name) for name, _ in self._streams}
        self._sources = {name: self._open_sources(bucket) for name, bucket in self._buckets.items()}
        recorded = [dataset.digest for dataset in self._datasets]
        self.contents = data_digest.contents(self.parts(), self._buckets)
        """For each bucket in use the digest of its samples in their order (data_digest.py)."""
        self.digest = data_digest.whole(recorded, self._weights, self.contents)
        """Digest of all that the order of samples depends on."""

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
        """Open folders or URLs of token shards, URLs through a local cache. Raises DataError, also for one that is missing or unfinished."""
        from pipeline.shards.dataset import ShardDataset
        from pipeline.shards.layout import DatasetError

        if not folders:
            raise DataError("no token shards: set curriculum.shards, or pipeline.output")
        limit = int(cache_gb * 1e9)
        try:
            opened = {folder: ShardDataset.open(folder, cache, limit) for folder in folders}
        except DatasetError as error:
            raise DataError(str(error)) from error
        return cls(opened, curriculum, weights)

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
                parts.append(_Rows(number, tuple(dataset.shard_rows(bucket).tolist())))
        if not parts:
            known = sorted({each.name for dataset in self._datasets for each in dataset.buckets()})
            raise DataError(
                f"curriculum: bucket {bucket.name} has no samples in {', '.join(map(str, self.folders))}; "
                f"buckets there: {', '.join(known) or 'none'}. Tokenize it (pipeline.buckets) or change the stage's mix"
            )
        return [_JoinedRows([rows]) for rows in parts] if self._weights else [_JoinedRows(parts)]

    def parts(self) -> dict[str, list[Part]]:
        """Return for each bucket in use the datasets that hold it, with their numbers and rows by shard."""
        return {
            name: [Part(rows.dataset, self._datasets[rows.dataset], rows.shards) for source in sources for rows in source.parts]
            for name, sources in self._sources.items()
        }

    def digests_as(self, contents: Mapping[str, str]) -> dict[str, Any]:
        """Return the digests that a checkpoint of an earlier version is compared by: `contents` as it holds them. Rows are read for it."""
        if not contents:
            recorded = [dataset.digest for dataset in self._datasets]
            return {"data_digest": data_digest.whole_of_rows(recorded, self._weights, self.parts(), self._buckets)}
        if all(each.startswith(data_digest.PREFIX) for each in contents.values()):
            return {}
        return {"contents": data_digest.contents_of_rows(self.parts(), self._buckets)}

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

    def hold(self, window: int) -> None:
        """Hold the rows of as many shards as streams with this shuffle window read at a time."""
        streams = Counter(bucket for bucket, _ in self._streams)
        for bucket, count in streams.items():
            for source in self._sources[bucket]:
                for rows in source.parts:
                    self._datasets[rows.dataset].hold(self._buckets[bucket], (window + 1) * count)

    def find(self, stream: StreamName, drawn: Draw) -> FoundBatch:
        """Look up the samples of a global batch."""
        found = FoundBatch([""] * len(drawn.rows), [""] * len(drawn.rows), [])
        for dataset, slots, numbers in self._located(stream, drawn.sources, drawn.rows):
            places = dataset.find(self._buckets[stream[0]], numbers)
            found.parts.append((dataset, slots, places))
            keys, captions = places.text("key"), [caption or "" for caption in places.text("caption")]
            if len(keys) == len(found.keys):
                return FoundBatch(keys, captions, found.parts)
            for slot, key, caption in zip(slots.tolist(), keys, captions, strict=True):
                found.keys[slot], found.captions[slot] = key, caption
        return found

    def caption(self, stream: StreamName, slot: Slot) -> str:
        """Return the caption of a slot."""
        return self.find(stream, _one(slot)).captions[0]

    def key(self, stream: StreamName, slot: Slot) -> str:
        """Return the sample key of a slot."""
        return self.find(stream, _one(slot)).keys[0]

    def rows(self, stream: StreamName, source: int) -> int:
        """Return the number of rows in one source of the stream."""
        return self._sources[stream[0]][source].size

    def read(self, stream: StreamName, slot: Slot) -> TokenSample:
        """Read one sample. Raises pipeline.shards.reader.CorruptSample if it is damaged."""
        ((dataset, _, numbers),) = self._located(stream, np.array([slot.source]), np.array([slot.row]))
        return dataset.read(self._buckets[stream[0]], int(numbers[0]), meta=False)

    def read_many(self, found: FoundBatch, slots: Sequence[int], size: int, features: int) -> Payload | None:
        """Read the first bytes of some slots' bits and, if all have them, features; every byte is checked.

        Returns None if any sample is damaged or too short: read one by one, they tell which.
        """
        if len(found.parts) == 1:
            ((dataset, _, places),) = found.parts
            return dataset.read_many(places.take(slots), size, features)
        bits, values = np.empty((len(slots), size), np.uint8), np.empty((len(slots), features), np.uint8)
        featured = True
        for dataset, held, places in found.parts:
            number = {slot: at for at, slot in enumerate(held.tolist())}
            mine = [at for at, slot in enumerate(slots) if slot in number]
            if not mine:
                continue
            read = dataset.read_many(places.take([number[slots[at]] for at in mine]), size, features)
            if read is None:
                return None
            bits[mine] = read.bits
            if read.features is None:
                featured = False
            else:
                values[mine] = read.features
        return Payload(bits, values if featured else None)

    def grid(self, stream: StreamName) -> tuple[int, int, int]:
        """Return (latent frames, rows, columns) of a stream's samples. Raises ValueError for frames that the tokenizer cannot cut at."""
        bucket = self._buckets[stream[0]]
        return self.spec.grid(stream[1] or bucket.frames, bucket.height, bucket.width)

    def _located(self, stream: StreamName, sources: Numbers, rows: Numbers) -> Iterator[tuple[Dataset, Numbers, Numbers]]:
        """Yield each dataset that holds some of these rows, their places in the given order, and their numbers in the dataset."""
        joint = self._sources[stream[0]]
        if len(joint) == 1 and len(joint[0].parts) == 1:
            yield self._datasets[joint[0].parts[0].dataset], np.arange(len(rows)), rows
            return
        for source, joined in enumerate(joint):
            mine = np.flatnonzero(sources == source)
            datasets, numbers = joined.find(rows[mine])
            for dataset in joined.datasets.tolist():
                at = np.flatnonzero(datasets == dataset)
                if len(at):
                    yield self._datasets[dataset], mine[at], numbers[at]


def _one(slot: Slot) -> Draw:
    return Draw(np.array([slot.source]), np.array([slot.row]), np.array([slot.epoch]), np.zeros(1, np.int64))
