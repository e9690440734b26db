"""`videoar shards verify` of N small samples in real tars, on Ray: every byte, every count."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.corpus_stages.memory import Workers, bytes_moved, peak_bytes
from cluster.runtime.atomic_files import write_json
from cluster.tables import table_writer
from pipeline.books.index import finish
from pipeline.job.task_session import task_session
from pipeline.maintenance.verify import verify
from pipeline.records import Clip
from pipeline.shards.layout import CLIPS, DATASET, FORMAT
from pipeline.shards.manifest import Manifest
from pipeline.shards.schemas import CLIPS as CLIP_SCHEMA
from pipeline.shards.schemas import clip_rows
from pipeline.shards.writer import EncodedClip, write_shard
from tests.helpers.fakes import SHAPE, FakeCodec, clip

FILE_SHARDS = 2048


def prepare(folder: Path, clips: int, options: argparse.Namespace) -> None:
    """Write shards of small samples, the table of clips that plans them, and the index."""
    spec, size = FakeCodec.spec, options.shard_rows
    write_json(
        folder / DATASET, {"format": FORMAT, "spec": spec.plain(), "fps": 8.0, "buckets": [SHAPE.name], "features": False}
    )
    count = -(-clips // size)
    calls = [(folder, number, size, clips) for number in range(count)]
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.starmap(_shard, calls, chunksize=64)
    files = []
    for at in range(0, count, FILE_SHARDS):
        tables = (clip_rows(_clips(n, size, clips), n) for n in range(at, min(count, at + FILE_SHARDS)))
        files.append(table_writer.write_file(folder / CLIPS / f"0001-{len(files):06d}.parquet", CLIP_SCHEMA, tables))
    table_writer.write_list(folder / CLIPS, files)
    with task_session("prepare", count) as tasks:
        finish(Manifest(folder), tasks)


def _clips(number: int, size: int, clips: int) -> list[Clip]:
    name = f"{SHAPE.name}/shard-{number:06d}"
    return [
        replace(clip(n, source=f"videos/{n // 4:09d}.mp4", caption=f"a person walks, {n}"), shard=name)
        for n in range(number * size, min(clips, (number + 1) * size))
    ]


def _shard(folder: Path, number: int, size: int, clips: int) -> None:
    spec, planned = FakeCodec.spec, _clips(number, size, clips)
    bits = 2 * spec.frame_bytes(2, 2)
    write_shard(folder, planned[0].shard, [EncodedClip(each, bytes(bits)) for each in planned], [], spec)


def run(folder: Path, clips: int, options: argparse.Namespace) -> dict[str, float]:
    """Verify."""
    empty, moved, spent = peak_bytes(), bytes_moved(), time.process_time()
    with task_session("verify", Manifest(folder).groups()) as tasks, Workers() as workers:
        began = time.perf_counter()
        report = verify(folder, tasks)
        seconds = time.perf_counter() - began
    assert report.sound and report.encoded == clips, report
    return {
        "seconds": seconds,
        "bytes": sum(path.stat().st_size for path in folder.glob("*/shard-*")),
        "driver_mb": peak_bytes() / 1e6,
        "driver_grown_mb": (peak_bytes() - empty) / 1e6,
        "driver_moved_mb": (bytes_moved() - moved) / 1e6,
        "driver_cpu_s": time.process_time() - spent,
        "worker_mb": workers.peak / 1e6,
        "worker_cpu_s": workers.cpu,
    }
