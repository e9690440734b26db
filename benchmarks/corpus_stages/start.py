"""What a rank pays to begin: opening the books of N clips, order and digests, and looking up step 1."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.corpus_stages import index
from benchmarks.corpus_stages.memory import bytes_moved, peak_bytes
from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum
from pretrain.data.sample_order import Order
from pretrain.data.token_datasets import TokenDatasets

BATCH, WINDOW, WINDOWS = 256, 16, 8
"""Global batch, shuffle window in shards, and how many windows `read` goes through."""


def prepare(folder: Path, clips: int, options: argparse.Namespace) -> None:
    """Write the books as a job leaves them."""
    index.prepare(folder, clips, options)
    index.run(folder, clips, options)


def run(folder: Path, clips: int, options: argparse.Namespace) -> dict[str, float]:
    """Open the books as training does, and look up the first step."""
    return look_up(folder, options.shard_rows, first_only=True)


def look_up(folder: Path, shard_rows: int, *, first_only: bool) -> dict[str, float]:
    """Open the books and look up step 1; without `first_only` time the steps after it instead, WINDOWS windows of shards."""
    steps = WINDOWS * WINDOW * shard_rows // BATCH
    mix = Mix(bucket=index.BUCKET, batch=BATCH)
    curriculum = Curriculum(CurriculumConfig(stages=(Stage(name="s", steps=steps, mix=(mix,)),)))
    empty, moved, spent = peak_bytes(), bytes_moved(), time.process_time()
    began = time.perf_counter()
    datasets = TokenDatasets.open([folder], curriculum)
    order = Order(0, curriculum, {name: datasets.sources(name) for name in curriculum.streams()}, WINDOW)
    datasets.contents()  # as pretrain.loop.resume takes them
    datasets.hold(order.window)
    for step in range(1, 2 if first_only else steps + 1):
        if step == 2:
            began, moved = time.perf_counter(), bytes_moved()
        at = curriculum.at(step)
        datasets.find(at.stream, order.draw(at))
    return {
        "seconds": time.perf_counter() - began,
        "bytes": bytes_moved() - moved,
        "rank_mb": (peak_bytes() - empty) / 1e6,
        "rank_cpu_s": time.process_time() - spent,
    }
