"""What a rank pays to go on: the rows of eight shuffle windows of shards, read as their samples are drawn."""

from __future__ import annotations

import argparse
from pathlib import Path

from benchmarks.corpus_stages import start
from benchmarks.corpus_stages.start import prepare

__all__ = ["prepare", "run"]


def run(folder: Path, clips: int, options: argparse.Namespace) -> dict[str, float]:
    """Look up the samples of the windows."""
    return start.look_up(folder, options.shard_rows, first_only=False)
