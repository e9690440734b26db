"""DOC from pipeline/maintenance/verify.py."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

from pipeline.shards.commit_record import read_info
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.digest import summed
from pipeline.shards.exclusions import excluded
from pipeline.shards.manifest import Manifest


def stat(folder: str | Path) -> dict[str, Any]:
    """Return counts of a finished folder: per bucket, refusals by stage and reason, sizes. Plain values, for a table or JSON."""
    folder = Path(folder)
    dataset = ShardDataset.open(folder)
    manifest = Manifest(folder)
    names: dict[str, list[str]] = {}
    for _, shards, _ in manifest.shards():
        for name in shards:
            names.setdefault(name.split("/")[0], []).append(name)
    buckets = {}
    for bucket, own in sorted(names.items()):
        sums = summed(read_info(folder / f"{name}.parquet") for name in own)
        buckets[bucket] = {what: sums[what] for what in ("shards", "samples", "frames", "tokens", "bytes")}
    refused = Counter(f"{reject.stage}/{reject.reason}" for reject in manifest.rejects())
    return {
        "folder": str(folder),
        "digest": dataset.digest,
        "tokenizer": dataset.spec.digest,
        "bits": dataset.spec.bits,
        "fps": dataset.fps,
        "videos": len(manifest.known()),
        "videos_used": len(manifest.used()),
        "buckets": buckets,
        "refused": dict(sorted(refused.items())),
        "excluded": excluded(folder),
    }
