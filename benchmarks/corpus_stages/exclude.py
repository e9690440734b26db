"""What `videoar shards exclude` of one source costs in a folder of N samples."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from benchmarks.corpus_stages import index
from benchmarks.corpus_stages.memory import bytes_moved, peak_bytes
from cluster.tables import table_writer
from pipeline.maintenance.takedown import exclude
from pipeline.shards.layout import CLIPS, EXCLUDED, HIDDEN
from pipeline.shards.schemas import CLIPS as CLIP_SCHEMA

PER_SOURCE = 4
"""Samples of a source in the synthetic books."""


def prepare(folder: Path, clips: int, options: argparse.Namespace) -> None:
    """Write the books as a job leaves them, with the sources in the table of clips too."""
    index.prepare(folder, clips, options)
    index.run(folder, clips, options)
    size, files = options.shard_rows, []
    for first in range(0, -(-clips // size), index.FILE_SHARDS):
        last = min(-(-clips // size), first + index.FILE_SHARDS)
        tables = (_planned(number, number * size, min(clips, (number + 1) * size)) for number in range(first, last))
        files.append(table_writer.write_file(folder / CLIPS / f"0001-{len(files):06d}.parquet", CLIP_SCHEMA, tables))
    table_writer.write_list(folder / CLIPS, files)


def _planned(group: int, begin: int, end: int) -> pa.Table:
    cells = {field.name: pa.nulls(end - begin, field.type) for field in CLIP_SCHEMA}
    cells["group"] = pa.array(np.full(end - begin, group))
    cells["shard"] = pa.array([f"{index.BUCKET}/shard-{group:06d}"] * (end - begin))
    cells["source"] = pa.array([f"videos/{number // PER_SOURCE:09d}.mp4" for number in range(begin, end)])
    return pa.table(cells, schema=CLIP_SCHEMA)


def run(folder: Path, clips: int, options: argparse.Namespace) -> dict[str, float]:
    """Take one source down, from the middle, in this process."""
    for name in (EXCLUDED, HIDDEN):
        (folder / name).unlink(missing_ok=True)
    empty, moved, spent = peak_bytes(), bytes_moved(), time.process_time()
    began = time.perf_counter()
    hidden = exclude(folder, [f"videos/{clips // PER_SOURCE // 2:09d}.mp4"])
    seconds = time.perf_counter() - began
    assert hidden == PER_SOURCE, hidden
    return {
        "seconds": seconds,
        "bytes": bytes_moved() - moved,
        "driver_mb": peak_bytes() / 1e6,
        "driver_grown_mb": (peak_bytes() - empty) / 1e6,
        "driver_cpu_s": time.process_time() - spent,
    }
