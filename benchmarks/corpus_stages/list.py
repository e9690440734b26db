"""The list: a parquet list of N videos with captions of 90 letters becomes the generation's list of videos.

Run twice: the second start finds the list that the first began, reads the corpus again and compares the two.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.corpus_stages.memory import bytes_moved, peak_bytes
from benchmarks.corpus_stages.merge import CAPTION
from cluster.config import load
from pipeline.job import generations
from pipeline.shards.layout import PLAN, VIDEOS
from pipeline.shards.manifest import Manifest

BATCH = 100_000
SCHEMA = pa.schema([("file", pa.string()), ("caption", pa.string())])


def prepare(folder: Path, clips: int, options: argparse.Namespace) -> None:
    """Write the list that a user has."""
    with pq.ParquetWriter(folder / "corpus.parquet", SCHEMA) as writer:
        for at in range(0, clips, BATCH):
            numbers = range(at, min(clips, at + BATCH))
            names = [f"s3://corpus/videos/{number // 1000:06d}/{number:012d}.mp4" for number in numbers]
            writer.write_table(pa.table([names, [f"{CAPTION} {number}" for number in numbers]], schema=SCHEMA))
    (folder / "c.yaml").write_text(f"corpus: {{videos: [{folder}/corpus.parquet]}}\n")
    (folder / "shards").mkdir()


def run(folder: Path, clips: int, options: argparse.Namespace) -> dict[str, float]:
    """Begin a generation, then begin again."""
    config, manifest = load(folder / "c.yaml"), Manifest(folder / "shards")
    empty, moved = peak_bytes(), bytes_moved()
    took = []
    with contextlib.redirect_stdout(io.StringIO()):
        for _ in range(2):
            began = time.perf_counter()
            begun = generations.begin(config, manifest, retry=False)
            took.append(time.perf_counter() - began)
            assert begun is not None and begun.count == clips
    return {
        "seconds": took[0],
        "again_s": took[1],
        "bytes": sum(path.stat().st_size for path in (folder / "shards" / PLAN / VIDEOS).glob("*")),
        "driver_mb": peak_bytes() / 1e6,
        "driver_grown_mb": (peak_bytes() - empty) / 1e6,
        "driver_moved_mb": (bytes_moved() - moved) / 1e6,
    }
