"""Views of a finished SHARDS folder: counts for a table or JSON (`stat`), and a grid of decoded samples as an mp4 (`show`)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.books.tasks import Runner, serially
from pipeline.maintenance.tally import tally_sources
from pipeline.records import Bucket
from pipeline.shards.commit_record import read_info, summed
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import REJECTS, DatasetError, excluded, open_table
from pipeline.shards.manifest import Manifest
from pipeline.video import write_video

SIZES = ("shards", "samples", "frames", "tokens", "bytes")
"""What is summed over the shards of a bucket."""
TASK_SHARDS = 256
"""Commit records that a task reads."""


def stat(folder: str | Path, run: Runner = serially) -> dict[str, Any]:
    """Return counts of a finished folder as plain values: sizes by bucket, rejects by stage and reason, sources taken down.

    Memory follows the number of shards. Raises DatasetError, CorruptSample for an unreadable commit record.
    """
    folder = Path(folder)
    dataset = ShardDataset.open(folder)
    names = (name for _, shards, _ in Manifest(folder).shards() for name in shards)
    calls = []
    while some := list(islice(names, TASK_SHARDS)):
        calls.append((folder, some))
    buckets: dict[str, Counter[str]] = {}
    for sizes in run("shards", sizes_of, calls):
        for bucket, size in sizes.items():
            buckets.setdefault(bucket, Counter()).update(size)
    rejects = open_table(folder, REJECTS)
    files = range(0 if rejects is None else len(rejects.files))
    refused: Counter[str] = Counter()
    for found in run("rejects", refusals_of, [(folder, number) for number in files]):
        refused.update(found)
    tally = tally_sources(folder, run, ".stat")
    return {
        "folder": str(folder),
        "digest": dataset.digest,
        "tokenizer": dataset.spec.digest,
        "bits": dataset.spec.bits,
        "fps": dataset.fps,
        "videos": tally.known,
        "videos_used": tally.used,
        "buckets": {name: {what: size[what] for what in SIZES} for name, size in sorted(buckets.items())},
        "refused": dict(sorted(refused.items())),
        "excluded": excluded(folder),
    }


def sizes_of(folder: Path, names: Sequence[str]) -> dict[str, dict[str, int]]:
    """Return the sizes of some shards, summed by bucket."""
    own: dict[str, list[str]] = {}
    for name in names:
        own.setdefault(name.split("/")[0], []).append(name)
    return {bucket: summed(read_info(folder / f"{name}.parquet") for name in shards) for bucket, shards in own.items()}


def refusals_of(folder: Path, number: int) -> dict[str, int]:
    """Return the numbers of rejects by stage and reason in a file of the table of rejects."""
    table = open_table(folder, REJECTS)
    assert table is not None
    rows = table.file(number).read(columns=["stage", "reason"], use_threads=False)
    counted = rows.group_by(["stage", "reason"]).aggregate([([], "count_all")])
    columns = (counted[name].to_pylist() for name in ("stage", "reason", "count_all"))
    return {f"{stage}/{reason}": count for stage, reason, count in zip(*columns, strict=True)}


def show(folder: str | Path, weights: str | Path, out: str | Path, count: int = 9, bucket: str | None = None) -> Path:
    """Decode `count` samples, spread evenly over a bucket, into a grid and write it as an mp4. Returns its path.

    weights: the tokenizer's folder. bucket: its name; the last one by name if none is given.
    Raises DatasetError for another tokenizer than that of the shards, an empty dataset or an unknown bucket.
    """
    import torch

    from tokenizer.codec import VideoCodec

    dataset = ShardDataset.open(folder)
    codec = VideoCodec.load(weights)
    if codec.spec.digest != dataset.spec.digest:
        raise DatasetError(
            f"{folder} was made with tokenizer {dataset.spec.digest[:12]}, {weights} is {codec.spec.digest[:12]}"
        )
    names = [found.name for found in dataset.buckets()]
    if not names or (bucket is not None and bucket not in names):
        raise DatasetError(f"{folder}: no samples in {bucket or 'any bucket'}; it has {', '.join(names) or 'none'}")
    shape = Bucket.parse(bucket or names[-1])
    total = dataset.rows(shape).num_rows
    numbers = sorted({round(at) for at in np.linspace(0, total - 1, min(count, total))})
    tiles = []
    for number in numbers:
        bits = torch.frombuffer(bytearray(dataset.read(shape, number).bits), dtype=torch.uint8)
        tiles.append(codec.decode(bits[None], shape.height, shape.width)[0].cpu().numpy())
    columns = int(np.ceil(np.sqrt(len(tiles))))
    tiles += [np.zeros_like(tiles[0])] * (-len(tiles) % columns)
    grid = np.concatenate([np.concatenate(tiles[at : at + columns], axis=2) for at in range(0, len(tiles), columns)], axis=1)
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_video(path, grid, dataset.fps)
    return path
