"""`videoar tokenize --repair`: damaged shards are discarded, so that the job encodes them again from their videos.

In:  a folder whose clips are all planned.
Out: the discarded shards with their former sha256; after the job, a check that the bytes are what they were.
"""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.corpus.fetch import content_digest, local
from pipeline.maintenance.verify import verify
from pipeline.shards.commit_record import read_info
from pipeline.shards.layout import INDEX, open_table
from pipeline.shards.manifest import Manifest
from pipeline.video import VideoError
from pipeline.workers.errors import JobError


def discard_damaged(manifest: Manifest) -> dict[str, str]:
    """Find damaged shards, check that their videos have not changed, and discard them. Not while a generation is being planned.

    Returns the sha256 that each had, by shard, where the index still has it. Raises JobError, with nothing discarded, when a
    video is gone or has changed: its samples would be lost.
    """
    if not manifest.groups():
        return {}
    damaged = set(verify(manifest.folder).damaged)
    known: dict[str, str] = {}
    if damaged and (index := open_table(manifest.folder, INDEX)) is not None:
        for table in index.tables(["shard", "tar_sha256"]):
            known |= dict(zip(table["shard"].to_pylist(), table["tar_sha256"].to_pylist()))
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
                    f"{clip.shard} is damaged and cannot be repaired: {error}; bring the video back, or exclude it"
                ) from error
            if not same:
                raise JobError(
                    f"{clip.shard} is damaged and cannot be repaired: {clip.source} has changed; bring the old file back"
                )
    for name in sorted(damaged):
        print(f"repair: {name} is encoded again", flush=True)
        (manifest.folder / f"{name}.parquet").unlink(missing_ok=True)
        (manifest.folder / f"{name}.tar").unlink(missing_ok=True)
    return {name: known.get(name, "") for name in damaged}


def check_repaired(manifest: Manifest, damaged: Mapping[str, str]) -> None:
    """Compare repaired shards with the sha256 that `discard_damaged` returned. Raises JobError where bytes differ."""
    other = [n for n, old in sorted(damaged.items()) if old and read_info(manifest.folder / f"{n}.parquet").tar_sha256 != old]
    if other:
        raise JobError(
            f"{', '.join(other)}: repaired with other bytes than before (another processor or library version?); "
            "the folder is sound, but its digest has changed"
        )
