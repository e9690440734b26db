"""What a rank pays for a large corpus: opening the books, and reading their rows window by window.

    python benchmarks/bench_start.py --clips 1000000 [--stage start|read] [--shard-rows 64] [--out DIR]

The books are synthetic: as the writers make them, with captions of 80 letters, without tars. `start` opens them as training does
(lists of shards, order, digests of data and contents) and looks up step 1; `read` then looks up some windows of shuffled shards. Each runs in a
process of its own, whose peak resident memory is counted above that of a process that has only imported the same modules. Prints
a line for each stage, and one JSON line. Making the books takes about half a minute per million clips; --out keeps them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum
from pretrain.data.sample_order import Order
from pretrain.data.token_datasets import TokenDatasets
from tests.helpers import made_books

BUCKET, BATCH, WINDOW, WINDOWS = "f017x256x256", 256, 16, 8
STAGES = ("start", "read")


def peak_bytes() -> int:
    """Return the most memory that this process had resident."""
    # Not ru_maxrss: a new process inherits it from the one that started it.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def bytes_read() -> int:
    """Return the bytes that this process asked the system for."""
    text = Path("/proc/self/io").read_text()
    return int(text.split("rchar: ")[1].split()[0])


def rank(folder: Path, stage: str, shard_rows: int) -> dict[str, float]:
    """Run one stage in this process."""
    steps = WINDOWS * WINDOW * shard_rows // BATCH
    curriculum = Curriculum(CurriculumConfig(stages=(Stage(name="s", steps=steps, mix=(Mix(bucket=BUCKET, batch=BATCH),)),)))
    empty, read = peak_bytes(), bytes_read()
    began = time.perf_counter()
    datasets = TokenDatasets.open([folder], curriculum)
    order = Order(0, curriculum, {name: datasets.sources(name) for name in curriculum.streams()}, WINDOW)
    datasets.contents()  # as pretrain.loop.resume takes them
    datasets.hold(order.window)
    samples = 0
    for step in range(1, steps + 1 if stage == "read" else 2):
        if step == 2:
            began, read = time.perf_counter(), bytes_read()
        at = curriculum.at(step)
        samples += len(datasets.find(at.stream, order.draw(at)).keys)
    seconds = time.perf_counter() - began
    return {"seconds": seconds, "bytes": bytes_read() - read, "mb": (peak_bytes() - empty) / 1e6, "samples": samples}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clips", type=int, default=1_000_000)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--shard-rows", type=int, default=64, help="pipeline.clips_per_shard")
    parser.add_argument("--out", type=Path, help="keep the books here, or use those that are here")
    parser.add_argument("--rank", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank:
        print(json.dumps(rank(Path(given.rank[0]), given.rank[1], given.shard_rows)))
        return
    line: dict[str, float | str] = {"name": "start", "clips": given.clips, "shard_rows": given.shard_rows}
    with tempfile.TemporaryDirectory() as temporary:
        folder = (given.out or Path(temporary)) / f"books-{given.clips}-{given.shard_rows}"
        if not folder.exists():
            made_books.make(folder, {BUCKET: given.clips}, shard_rows=given.shard_rows)
        line["index_mb"] = round((folder / "index.parquet").stat().st_size / 1e6, 1)
        for stage in STAGES if given.stage is None else (given.stage,):
            command = [sys.executable, __file__, "--shard-rows", str(given.shard_rows), "--rank", str(folder), stage]
            done = subprocess.run(command, check=True, capture_output=True, text=True, env={**os.environ})
            found = json.loads(done.stdout)
            print(
                f"{stage:6s} {found['seconds']:8.2f} s  {found['bytes'] / 1e6:8.1f} MB read  {found['mb']:6.0f} MB resident  "
                f"{1e6 * found['seconds'] / found['samples']:8.1f} us per sample looked up"
            )
            line[f"{stage}_s"] = round(found["seconds"], 3)
            line["rank_mb"] = round(max(float(line.get("rank_mb", 0)), found["mb"]), 1)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
