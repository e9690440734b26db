"""One digest over all committed content of a SHARDS folder, and sums over its shards.

In:  dataset.json, commit records in order of name, refusals.
Out: a sha256 (hex); counts.
Called by: pipeline.manifest, pipeline.verify, pipeline.summary.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from pipeline.records import Reject
from pipeline.shards.commit_record import ShardInfo


def dataset_digest(dataset: Mapping[str, Any], infos: Iterable[ShardInfo], rejects: Iterable[Reject]) -> str:
    """Return one sha256 (hex) over all committed content.

    It covers format, tokenizer, frame rate and buckets; name, samples and sha256 of every shard's tar in order of name;
    and source, stage, reason and span of every refusal (not its wording). `infos` come in order of name and are taken one
    at a time, `rejects` only after the last of them. Raises ValueError for another order.
    """
    hasher = hashlib.sha256(_canonical({key: dataset[key] for key in ("format", "spec", "fps", "buckets", "features")}))
    last = ""
    for info in infos:
        if info.shard <= last:
            raise ValueError(f"shard {info.shard} after {last}: the digest takes shards in order of name")
        last = info.shard
        hasher.update(_canonical([info.shard, info.samples, info.tar_sha256]))
    # An empty begin sorts first; -1 stands for it.
    keys = [
        (r.source, r.stage, r.reason, -1.0 if r.begin is None else r.begin, -1.0 if r.end is None else r.end) for r in rejects
    ]
    for item in sorted(keys):
        hasher.update(_canonical(item))
    return hasher.hexdigest()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() + b"\n"


def summed(infos: Iterable[ShardInfo]) -> dict[str, int]:
    """Return shards, samples, frames, tokens, bytes and refused clips over shards, taken one at a time."""
    sums = dict.fromkeys(("shards", "samples", "frames", "tokens", "bytes", "refused"), 0)
    for info in infos:
        sums["shards"] += 1
        sums["samples"] += info.samples
        sums["frames"] += info.frames
        sums["tokens"] += info.tokens
        sums["bytes"] += info.tar_bytes
        sums["refused"] += len(info.rejects)
    return sums
