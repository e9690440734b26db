"""DOC from pipeline/job/tokenize.py."""

from __future__ import annotations

from collections.abc import Mapping

import pyarrow.parquet as pq

from pipeline.corpus.fetch import content_digest, local
from pipeline.maintenance.verify import verify
from pipeline.shards.commit_record import read_info
from pipeline.shards.layout import INDEX
from pipeline.shards.manifest import Manifest
from pipeline.video import VideoError
from pipeline.workers.errors import JobError


def _discard_damaged(manifest: Manifest) -> dict[str, str]:
    """Find damaged shards, make sure that their videos are still what they were, and discard them.

    Returns the sha256 that each had, by shard, where the index still tells it. Raises JobError, with nothing touched, when a
    video is gone or changed: its samples would be lost.
    """
    if manifest.generation() is not None or not manifest.groups():
        return {}
    damaged = set(verify(manifest.folder).damaged)
    known: dict[str, str] = {}
    if damaged and (manifest.folder / INDEX).exists():
        table = pq.read_table(manifest.folder / INDEX, columns=["shard", "tar_sha256"])
        known = dict(zip(table["shard"].to_pylist(), table["tar_sha256"].to_pylist()))
    checked: set[str] = set()
    for group, names, _ in manifest.shards():
        if damaged.isdisjoint(names):
            continue
        for clip in manifest.clips(group):
            if clip.shard not in damaged or clip.source in checked:
                continue
            checked.add(clip.source)
            try:
                with local(clip.source) as path:
                    same = content_digest(path) == clip.source_digest
            except VideoError as error:
                raise JobError(
                    f"{clip.shard} is damaged and cannot be made again: {error}; bring the video back, or exclude it"
                ) from error
            if not same:
                raise JobError(
                    f"{clip.shard} is damaged and cannot be made again: {clip.source} has changed; bring the old one back"
                )
    for name in sorted(damaged):
        print(f"repair: {name} is made again", flush=True)
        (manifest.folder / f"{name}.parquet").unlink(missing_ok=True)
        (manifest.folder / f"{name}.tar").unlink(missing_ok=True)
    return {name: known.get(name, "") for name in damaged}


def _compare(manifest: Manifest, damaged: Mapping[str, str]) -> None:
    other = [n for n, old in sorted(damaged.items()) if old and read_info(manifest.folder / f"{n}.parquet").tar_sha256 != old]
    if other:
        raise JobError(
            f"{', '.join(other)}: made again with other bytes than before (another processor or library version?); "
            "the folder is sound, but its digest has changed"
        )
