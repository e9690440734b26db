"""How fast do token shards reach training? Our loader against a plain `webdataset` pipeline over the same files.

    python benchmarks/load.py [--samples 2000] [--bucket f017x256x256] [--bits 48] [--batch 16] [--cpu-time] [--out DIR]

Both read, shuffle, decompress and batch the same shards on the same cores, page cache warm. Ours checks every byte's checksum
and hands out packed bits (one process, one thread reading ahead); the plain one unpacks to one byte a bit with numpy, as a
pipeline without a packed batch has to (the better of 0 and 2 worker processes counts). The limit is reading the tars whole
with plain `read` calls. `--cpu-time` counts CPU seconds of all threads and processes, for a machine with other work; two workers
are then taken to run perfectly side by side (half their CPU seconds), ours not at all. Prints a table and one JSON line.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import webdataset
import zstandard

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum
from pretrain.data.loader import Loader, LoaderConfig
from pretrain.data.sample_order import Order
from pretrain.data.token_datasets import TokenDatasets
from pretrain.engine.config import TrainConfig
from pretrain.model.config import ModelConfig
from pretrain.model.text_tokenizer import TextTokenizer
from tests.helpers import made_shards
from tokenizer.quantization.codec_spec import CodecSpec


def ours(folder: Path, bucket: str, batch: int, samples: int) -> int:
    """Read one epoch; returns the samples read."""
    steps = samples // batch
    stage = Stage(name="load", steps=steps, mix=(Mix(bucket=bucket, batch=batch),))
    curriculum = Curriculum(CurriculumConfig(stages=(stage,)))
    datasets = TokenDatasets.open([folder], curriculum)
    order = Order(0, curriculum, {name: datasets.sources(name) for name in curriculum.streams()}, 16)
    text = TextTokenizer.make(ModelConfig())
    count = 0
    config = LoaderConfig(micro_batch=batch, text_length=64, prefetch=TrainConfig().prefetch)
    with Loader(datasets, order, text, config, rank=0, world=1, steps=range(1, steps + 1)) as loader:
        for item in loader:
            count += sum(part.bits.shape[0] for part in item.batches)
    return count


def _decode(sample: dict[str, Any]) -> tuple[torch.Tensor, str]:
    packed = np.frombuffer(zstandard.ZstdDecompressor().decompress(sample["bits.zst"]), dtype=np.uint8)
    return torch.from_numpy(np.unpackbits(packed, bitorder="little")), sample["txt"].decode()


def _batch(samples: list[tuple[torch.Tensor, str]]) -> tuple[torch.Tensor, list[str]]:
    return torch.stack([bits for bits, _ in samples]), [text for _, text in samples]


def plain(folder: Path, bucket: str, batch: int, workers: int) -> int:
    """Read one epoch with webdataset; returns the samples read."""
    tars = sorted(str(path) for path in (folder / bucket).glob("*.tar"))
    pipeline = (
        webdataset.WebDataset(tars, shardshuffle=len(tars)).shuffle(1000).map(_decode).batched(batch, collation_fn=_batch)
    )
    loader = torch.utils.data.DataLoader(pipeline, batch_size=None, num_workers=workers)
    return sum(bits.shape[0] for bits, _ in loader)


def raw(folder: Path, bucket: str) -> int:
    """Read the tars whole; returns the bytes read."""
    count = 0
    for path in sorted((folder / bucket).glob("*.tar")):
        with path.open("rb", buffering=0) as file:
            while data := file.read(1 << 20):
                count += len(data)
    return count


def spent() -> float:
    """CPU seconds of this process, its threads, and its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def best(what: dict[str, Callable[[], int]], clock: Callable[[], float], times: int = 5) -> dict[str, tuple[float, int]]:
    """Return the shortest seconds of each, and what it returned. They take turns, so that a busy machine troubles all alike."""
    found: dict[str, tuple[float, int]] = {}
    for _ in range(times):
        for name, function in what.items():
            began = clock()
            count = function()
            seconds = clock() - began
            found[name] = min(found.get(name, (seconds, count)), (seconds, count))
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=2000)
    parser.add_argument("--bucket", default="f017x256x256")
    parser.add_argument("--bits", type=int, default=48)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--shard-rows", type=int, default=64)
    parser.add_argument("--mask", type=int, default=255, help="random bits of each byte; 0x5A = 90 compresses to a half")
    parser.add_argument("--cpu-time", action="store_true", help="CPU seconds in place of seconds")
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    spec = CodecSpec(bits=given.bits, spatial_stride=16, temporal_stride=4, digest="0" * 64)
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.out or Path(temporary)) / "shards"
        if not folder.exists():
            made_shards.make(folder, {given.bucket: given.samples}, shard_rows=given.shard_rows, spec=spec, mask=given.mask)
        from pipeline.records import Bucket

        shape = Bucket.parse(given.bucket)
        grid = spec.grid(shape.frames, shape.height, shape.width)
        tokens = grid[0] * spec.positions(*grid[1:])
        found = best(
            {
                "raw": lambda: raw(folder, given.bucket),
                "ours": lambda: ours(folder, given.bucket, given.batch, given.samples),
                "plain 0": lambda: plain(folder, given.bucket, given.batch, 0),
                "plain 2": lambda: plain(folder, given.bucket, given.batch, 2),
            },
            spent if given.cpu_time else time.perf_counter,
        )
        if given.cpu_time:
            found["plain 2"] = (found["plain 2"][0] / 2, found["plain 2"][1])
        (raw_seconds, size), (our_seconds, our_count) = found["raw"], found["ours"]
        rates = {workers: found[f"plain {workers}"][1] * tokens / found[f"plain {workers}"][0] for workers in (0, 2)}
    our_rate, plain_rate = our_count * tokens / our_seconds, max(rates.values())
    limit = given.samples * tokens / raw_seconds
    print(f"{given.samples} samples of {tokens} tokens, {given.bits} bits, {size / 1e6:.1f} MB of tars, {os.cpu_count()} cores")
    print(f"ours                    {our_rate / 1e6:10.2f} Mtok/s  {our_count / our_seconds:10.0f} samples/s")
    for workers, rate in rates.items():
        print(f"webdataset, {workers} workers   {rate / 1e6:10.2f} Mtok/s  {rate / tokens:10.0f} samples/s")
    print(f"reading the files alone {limit / 1e6:10.2f} Mtok/s  {size / raw_seconds / 1e6:10.0f} MB/s")
    line = {
        "name": "load",
        "unit": "tokens/s",
        "ours": our_rate,
        "plain": plain_rate,
        "ratio": our_rate / plain_rate,
        "limit": limit,
        "limit_share": our_rate / limit,
        "bucket": given.bucket,
        "clock": "CPU seconds" if given.cpu_time else "seconds",
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
