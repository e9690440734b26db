"""Views of a finished SHARDS folder: counts for a table or JSON (`stat`), and a grid of decoded samples as an mp4 (`show`)."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.records import Bucket
from pipeline.shards.commit_record import read_info, summed
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError, excluded
from pipeline.shards.manifest import Manifest
from pipeline.video import write_video


def stat(folder: str | Path) -> dict[str, Any]:
    """Return counts of a finished folder as plain values: sizes by bucket, rejects by stage and reason, sources taken down."""
    folder = Path(folder)
    dataset = ShardDataset.open(folder)
    manifest = Manifest(folder)
    names: dict[str, list[str]] = {}
    for _, shards, _ in manifest.shards():
        for name in shards:
            names.setdefault(name.split("/")[0], []).append(name)
    buckets = {}
    for bucket, own in sorted(names.items()):
        sums = summed(read_info(folder / f"{name}.parquet") for name in own)
        buckets[bucket] = {what: sums[what] for what in ("shards", "samples", "frames", "tokens", "bytes")}
    refused = Counter(f"{reject.stage}/{reject.reason}" for reject in manifest.rejects())
    return {
        "folder": str(folder),
        "digest": dataset.digest,
        "tokenizer": dataset.spec.digest,
        "bits": dataset.spec.bits,
        "fps": dataset.fps,
        "videos": len(manifest.known()),
        "videos_used": len(manifest.used()),
        "buckets": buckets,
        "refused": dict(sorted(refused.items())),
        "excluded": excluded(folder),
    }


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
