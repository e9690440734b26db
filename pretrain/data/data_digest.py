"""Digests of what a run is trained on, by which a resume notices that samples or their order have changed.

In:  the datasets of a run and, by bucket, the shards of each.
Out: a digest for each bucket, and one of all. They are made of the lists of shards (name, rows, sha256 of the tar), so a start reads no
     row but the keys of shards of which some samples were taken down.

Earlier versions made them of the rows: `contents_of_rows` and `whole_of_rows` do so for checkpoints that were written then.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.records import Bucket
from pretrain.data.dataset import Dataset

PREFIX = "shards:"
"""Begins a digest that is made of the lists of shards."""


class Part(NamedTuple):
    """The shards of one bucket in one dataset."""

    number: int
    """Of the dataset, among those of the run."""
    dataset: Dataset
    shards: tuple[int, ...]
    """Rows of each, in order."""


def whole(recorded: Sequence[str], weights: Sequence[float], contents: Mapping[str, str]) -> str:
    """Return the sha256 of all that the order of samples depends on: the datasets' own digests, weights, each bucket's samples."""
    return hashlib.sha256(json.dumps([list(recorded), list(weights), sorted(contents.items())]).encode()).hexdigest()


def contents(parts: Mapping[str, Sequence[Part]], buckets: Mapping[str, Bucket]) -> dict[str, str]:
    """Return the digest of each bucket's samples in their order."""
    found = {}
    for name, held in parts.items():
        plain = [[part.number, part.dataset.contents(buckets[name])] for part in held]
        found[name] = PREFIX + hashlib.sha256(json.dumps(plain).encode()).hexdigest()
    return found


def contents_of_rows(parts: Mapping[str, Sequence[Part]], buckets: Mapping[str, Bucket]) -> dict[str, str]:
    """Return for each bucket the sha256 over shards, keys, captions and checksums of its samples, as earlier versions wrote it."""
    found = {}
    for name, held in parts.items():
        digest = hashlib.sha256()
        for part in held:
            digest.update(f"{part.number}:{part.shards}".encode())
            for column in ("key", "caption", "bits_xxh3"):
                _add(digest, part.dataset, buckets[name], column)
        found[name] = digest.hexdigest()
    return found


def whole_of_rows(
    recorded: Sequence[str],
    weights: Sequence[float],
    parts: Mapping[str, Sequence[Part]],
    buckets: Mapping[str, Bucket],
) -> str:
    """Return the sha256 over datasets, weights and the keys in their order, as earlier versions wrote it."""
    digest = hashlib.sha256(repr((list(recorded), tuple(weights))).encode())
    for name, held in sorted(parts.items()):
        for part in held:
            digest.update(f"{name}:{part.number}:{part.shards}".encode())
            _add(digest, part.dataset, buckets[name], "key")
    return digest.hexdigest()


def _add(digest: Any, dataset: Dataset, bucket: Bucket, column: str) -> None:
    """Add the cells of a column, with line feeds between them."""
    between = b""
    for cells in dataset.column(bucket, column):
        digest.update(between)
        digest.update(_lines(cells))
        between = b"\n"


def _lines(cells: pa.StringArray) -> Any:
    """Return the bytes of some texts with line feeds between them; an empty cell counts as "None"."""
    filled = cells.fill_null("None")
    return pc.binary_join(pa.ListArray.from_arrays(pa.array([0, len(filled)], pa.int32()), filled), "\n")[0].as_buffer()
