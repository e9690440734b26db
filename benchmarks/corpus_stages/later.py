"""The begin of a later generation: the books of N one-clip videos are there, and the list that a user has names a hundred more.

The corpus is listed and compared with the books: which videos are new, which captions have changed. Then the videos of the folder are counted.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import time
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from benchmarks.corpus_stages import list as listing
from benchmarks.corpus_stages.memory import bytes_moved, peak_bytes
from benchmarks.corpus_stages.merge import CAPTION
from cluster.config import load
from cluster.metrics import Meter
from cluster.tables import table_writer
from pipeline.job import generations
from pipeline.shards.layout import CLIPS
from pipeline.shards.manifest import Manifest
from pipeline.shards.schemas import CLIPS as SCHEMA
from pipeline.workers.job_metrics import count_plan

NEW, FILE = 100, 1 << 17
"""Videos that the folder does not have, and clips in a file of its table."""


def prepare(folder: Path, clips: int, options: argparse.Namespace) -> None:
    """Write the list and a table of clips, as a merge writes it."""
    listing.prepare(folder, clips + NEW, options)
    table = folder / "shards" / CLIPS
    files = [
        table_writer.write_file(
            table / f"0001-{number:06d}.parquet", SCHEMA, _groups(at, min(clips, at + FILE), options.shard_rows), generation=1
        )
        for number, at in enumerate(range(0, clips, FILE))
    ]
    table_writer.write_list(table, files)


def _groups(begin: int, end: int, rows: int) -> Iterator[pa.Table]:
    for at in range(begin, end, rows):
        numbers = range(at, min(end, at + rows))
        cells: dict[str, object] = {
            "group": [at // rows] * len(numbers),
            "shard": [f"f017x256x256/shard-{at // rows:06d}"] * len(numbers),
            "source": [f"s3://corpus/videos/{number // 1000:06d}/{number:012d}.mp4" for number in numbers],
            "caption": [f"{CAPTION} {number}" for number in numbers],
            "key": [f"{number:032x}" for number in numbers],
        }
        columns = [
            pa.array(cells[field.name], field.type)
            if field.name in cells
            else pa.array(
                [[] if pa.types.is_map(field.type) else "" if pa.types.is_string(field.type) else 0] * len(numbers), field.type
            )
            for field in SCHEMA
        ]
        yield pa.table(columns, schema=SCHEMA)


def run(folder: Path, clips: int, options: argparse.Namespace) -> dict[str, float]:
    """Begin the later generation, and count."""
    config, manifest = load(folder / "c.yaml"), Manifest(folder / "shards")
    empty, moved = peak_bytes(), bytes_moved()
    began = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        begun = generations.begin(config, manifest, retry=False)
        assert begun is not None and begun.count == NEW
        compared = time.perf_counter()
        count_plan(manifest, Meter())
    return {
        "seconds": compared - began,
        "count_s": time.perf_counter() - compared,
        "bytes": sum(path.stat().st_size for path in (folder / "shards" / CLIPS).glob("*")),
        "driver_mb": peak_bytes() / 1e6,
        "driver_grown_mb": (peak_bytes() - empty) / 1e6,
        "driver_moved_mb": (bytes_moved() - moved) / 1e6,
    }
