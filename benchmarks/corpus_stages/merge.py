"""The merge: planned parts of N one-clip videos to the tables of clips and rejects, on a Ray of this machine's cores.

One clip a video is the worst case: the most names, digests and rows of the list for each clip. 3 in 100 videos are exact copies, 3
in 100 are refused; captions have 90 letters.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import ray

from benchmarks.corpus_stages.memory import Workers, bytes_moved, peak_bytes
from cluster.runtime.atomic_files import write_json
from cluster.tables import table_writer
from pipeline.books.merge import merge
from pipeline.books.parts import CLIP, PART, write_table
from pipeline.config import PipelineConfig
from pipeline.shards import generation
from pipeline.shards.layout import PLAN, RETRIED, VIDEOS
from pipeline.shards.manifest import Manifest
from pipeline.shards.schemas import REJECTS
from pipeline.shards.schemas import VIDEOS as VIDEO_SCHEMA
from pipeline.workers.book_tasks import on_ray

PART_VIDEOS = 1000
CAPTION = "a person walks slowly along the wet beach while the sun sets behind far blue hills"


def prepare(folder: Path, clips: int, options: argparse.Namespace) -> None:
    """Write the list and the parts, as listing and planning tasks would."""
    plan = folder / PLAN
    (plan / VIDEOS).mkdir(parents=True)
    write_json(plan / RETRIED, [])
    files = []
    for at in range(0, clips, generation.FILE_ROWS):
        path = plan / VIDEOS / f"0001-{len(files):06d}.parquet"
        files.append(
            table_writer.write_file(path, VIDEO_SCHEMA, _listed(at, min(clips, at + generation.FILE_ROWS)), generation=1)
        )
    table_writer.write_list(plan / VIDEOS, files, {"number": 1, "first_group": 0})
    with multiprocessing.get_context("spawn").Pool(os.cpu_count()) as pool:
        pool.starmap(
            _part,
            [(plan, number, min(PART_VIDEOS, clips - number * PART_VIDEOS)) for number in range(-(-clips // PART_VIDEOS))],
        )


def _listed(begin: int, end: int) -> Iterator[pa.Table]:
    for at in range(begin, end, generation.GROUP_ROWS):
        count = min(generation.GROUP_ROWS, end - at)
        cells = [
            _names(at, count),
            [CAPTION] * count,
            pa.array([[]] * count, VIDEO_SCHEMA.field("extra").type),
            [""] * count,
            [0] * count,
        ]
        yield pa.table(dict(zip(VIDEO_SCHEMA.names, cells, strict=True)), schema=VIDEO_SCHEMA)


def _names(at: int, count: int) -> list[str]:
    return [f"s3://corpus/videos/{number // 1000:06d}/{number:012d}.mp4" for number in range(at, at + count)]


def _part(plan: Path, number: int, count: int) -> None:
    rng = np.random.default_rng(number)
    at = number * PART_VIDEOS
    kinds = rng.random(count)
    text = rng.bytes(16 * count).hex()
    digests = [text[32 * n : 32 * n + 32] for n in range(count)]
    for n in np.flatnonzero(kinds < 0.03).tolist():  # copies of one of a thousand videos
        digests[n] = f"{int(rng.integers(1000)):032x}"
    held = kinds < 0.97
    keys = rng.bytes(16 * count).hex()
    clips = pa.StructArray.from_arrays(
        [
            [keys[32 * n : 32 * n + 32] for n in range(count)],
            pa.array(np.zeros(count)),
            pa.array(np.full(count, 2.125)),
            pa.array(np.full(count, 8.0)),
            ["f017x256x256"] * count,
            [""] * count,
            [f"{CAPTION} {n}" for n in range(at, at + count)],
            pa.array([[("luma", float(n)), ("motion", 3.5)] for n in range(count)], CLIP.field("scores").type),
            pa.array([[("licence", "CC-BY")]] * count, CLIP.field("extra").type),
        ],
        fields=list(CLIP),
    ).filter(pa.array(held))
    offsets = np.concatenate([[0], np.cumsum(held)]).astype(np.int32)
    names = _names(at, count)
    refusal = {
        **dict.fromkeys(REJECTS.names, ""),
        "stage": "probe",
        "reason": "damaged",
        "begin": None,
        "end": None,
        "scores": [],
    }
    rows = [[] if held[n] else [{**refusal, "source": names[n]}] for n in range(count)]
    refused = pa.array(rows, PART.field("rejects").type)
    cells = [
        names,
        digests,
        pa.ListArray.from_arrays(pa.array(offsets), clips, type=PART.field("clips").type),
        refused,
        [[]] * count,
    ]
    write_table(
        plan / f"part-{number:06d}.arrow", pa.table(dict(zip(PART.names, cells, strict=True)), schema=PART), compression="zstd"
    )


def run(folder: Path, clips: int, options: argparse.Namespace) -> dict[str, float]:
    """Merge, and count what came out."""
    scratch = tempfile.mkdtemp(prefix="r-", dir="/tmp")
    ray.init(num_cpus=os.cpu_count(), include_dashboard=False, _temp_dir=scratch, log_to_driver=False)
    manifest = Manifest(folder)
    config = PipelineConfig(videos_per_task=PART_VIDEOS, clips_per_shard=options.shard_rows, min_free_gb=0)
    empty, moved, spent = peak_bytes(), bytes_moved(), time.process_time()
    with Workers() as workers:
        began = time.perf_counter()
        planned = manifest.generation()
        assert planned is not None
        used, unused = merge(manifest, planned, config, -(-clips // PART_VIDEOS), on_ray)
        seconds = time.perf_counter() - began
        spent = time.process_time() - spent
    ray.shutdown()
    shutil.rmtree(scratch, ignore_errors=True)
    assert used + unused == clips and 0.9 * clips < used < 0.98 * clips
    books = sum(path.stat().st_size for name in ("clips", "rejects") for path in (folder / name).glob("*"))
    return {
        "seconds": seconds,
        "bytes": books,
        "driver_mb": peak_bytes() / 1e6,
        "driver_grown_mb": (peak_bytes() - empty) / 1e6,
        "driver_moved_mb": (bytes_moved() - moved) / 1e6,
        "driver_cpu_s": spent,
        "worker_mb": workers.peak / 1e6,
        "worker_cpu_s": workers.cpu,
    }
