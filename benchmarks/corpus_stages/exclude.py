"""What `videoar shards exclude` of one source costs in a folder of N samples."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from benchmarks.corpus_stages import start
from benchmarks.corpus_stages.memory import bytes_moved, peak_bytes
from pipeline.maintenance.takedown import exclude
from pipeline.shards.layout import EXCLUDED, HIDDEN
from tests.helpers.made_books import source_of

prepare = start.prepare


def run(folder: Path, clips: int, options: argparse.Namespace) -> dict[str, float]:
    """Take one source down, from the middle, in this process."""
    for name in (EXCLUDED, HIDDEN):
        (folder / name).unlink(missing_ok=True)
    empty, moved, spent = peak_bytes(), bytes_moved(), time.process_time()
    began = time.perf_counter()
    hidden = exclude(folder, [source_of(clips // 2)])
    seconds = time.perf_counter() - began
    assert hidden == 4, hidden
    return {
        "seconds": seconds,
        "bytes": bytes_moved() - moved,
        "driver_mb": peak_bytes() / 1e6,
        "driver_grown_mb": (peak_bytes() - empty) / 1e6,
        "driver_cpu_s": time.process_time() - spent,
    }
