"""The index: commit records of the shards of N clips to the files of the index, its list of shards, and the digest, on Ray."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import shutil
import tempfile
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.corpus_stages.memory import Workers, bytes_moved, peak_bytes
from cluster.runtime.atomic_files import write_json
from cluster.tables import table_writer
from pipeline.books.index import finish
from pipeline.shards.commit_record import RECORD_KEY, ShardInfo
from pipeline.shards.layout import CLIPS, DATASET, FORMAT, INDEX
from pipeline.shards.manifest import Manifest
from pipeline.shards.schemas import CLIPS as CLIP_SCHEMA
from pipeline.workers.book_tasks import on_ray
from tests.helpers.made_books import rows_of, source_of
from tests.helpers.made_shards import SPEC

BUCKET = "f017x256x256"
FILE_SHARDS = 2048


def prepare(folder: Path, clips: int, options: argparse.Namespace) -> None:
    """Write the shards' own parquets, without tars, and a table of clips that names them."""
    (folder / BUCKET).mkdir()
    write_json(folder / DATASET, {"format": FORMAT, "spec": SPEC.plain(), "fps": 8.0, "buckets": [BUCKET], "features": False})
    size = options.shard_rows
    calls = [(folder, number, size, min(clips, (number + 1) * size)) for number in range(-(-clips // size))]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.starmap(_shard, calls, chunksize=64)
    files = []
    for at in range(0, len(calls), FILE_SHARDS):
        tables = [_planned(number, number * size, end) for _, number, _, end in calls[at : at + FILE_SHARDS]]
        files.append(table_writer.write_file(folder / CLIPS / f"0001-{len(files):06d}.parquet", CLIP_SCHEMA, tables))
    table_writer.write_list(folder / CLIPS, files)


def _shard(folder: Path, number: int, size: int, end: int) -> None:
    shard = f"{BUCKET}/shard-{number:06d}"
    table = rows_of(shard, BUCKET, number * size, end, 0)
    info = ShardInfo(shard, table.num_rows, 0, 0, 0, table["tar_sha256"][0].as_py())
    record = {RECORD_KEY: json.dumps(asdict(info), sort_keys=True).encode()}
    pq.write_table(table.replace_schema_metadata(record), folder / f"{shard}.parquet", compression="zstd")


def _planned(number: int, begin: int, end: int) -> pa.Table:
    """Return rows of the table of clips with group, shard and source alone."""
    count = end - begin
    cells = {field.name: pa.nulls(count, field.type) for field in CLIP_SCHEMA}
    cells |= {"group": pa.array(np.full(count, number)), "shard": pa.array([f"{BUCKET}/shard-{number:06d}"] * count)}
    cells["source"] = pa.array([source_of(clip) for clip in range(begin, end)])
    return pa.table(cells, schema=CLIP_SCHEMA)


def run(folder: Path, clips: int, options: argparse.Namespace) -> dict[str, float]:
    """Write the index."""
    scratch = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, _temp_dir=scratch, log_to_driver=False)
    manifest = Manifest(folder)
    empty, moved, spent = peak_bytes(), bytes_moved(), time.process_time()
    with Workers() as workers:
        began = time.perf_counter()
        finish(manifest, on_ray)
        seconds = time.perf_counter() - began
        spent = time.process_time() - spent
    ray.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)
    return {
        "seconds": seconds,
        "bytes": sum(path.stat().st_size for path in (folder / INDEX).glob("*")),
        "driver_mb": peak_bytes() / 1e6,
        "driver_grown_mb": (peak_bytes() - empty) / 1e6,
        "driver_moved_mb": (bytes_moved() - moved) / 1e6,
        "driver_cpu_s": spent,
        "worker_mb": workers.peak / 1e6,
        "worker_cpu_s": workers.cpu,
    }
