"""DOC from pipeline/maintenance/verify.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pipeline.records import Bucket
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError
from pipeline.video import write_video


def show(folder: str | Path, weights: str | Path, out: str | Path, count: int = 9, bucket: str | None = None) -> Path:
    """Decode some samples, spread over a bucket, into a grid and write it as an mp4. Returns its path.

    weights: the tokenizer's folder. Raises DatasetError for another tokenizer, an empty dataset or an unknown bucket.
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
