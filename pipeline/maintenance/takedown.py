"""Taking sources down: they are hidden from every reader at once, and later removed from the shards.

In:  a SHARDS folder and names of sources.
Out: excluded.json (`exclude`); shards without the excluded samples (`compact`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pyarrow.parquet as pq

from cluster.runtime.atomic_files import write_json
from pipeline.books.index import finish
from pipeline.records import Reject
from pipeline.shards.commit_record import read_info
from pipeline.shards.dataset import ShardDataset, open_folder
from pipeline.shards.layout import (
    EXCLUDED,
    INDEX,
    DatasetError,
    FolderLock,
    excluded,
    hidden,
    open_table,
    refuse_old,
    remove_index,
    taken_down,
)
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import read_sample
from pipeline.shards.writer import EncodedClip, write_shard


def exclude(folder: str | Path, sources: Iterable[str]) -> int:
    """Take sources down: every reader skips their samples from the next time it opens the folder; no shard is rewritten.

    A name that ends in / stands for all sources below it. Returns the number of samples that are now hidden.
    Raises DatasetError for a source that the folder does not hold.
    """
    folder = Path(folder)
    with FolderLock(folder):
        known = Manifest(folder).known()
        wanted = list(sources)
        for name in wanted:
            if not (any(source.startswith(name) for source in known) if name.endswith("/") else name in known):
                raise DatasetError(f"{folder}: holds nothing of `{name}`; name sources as the table of clips does")
        write_json(folder / EXCLUDED, sorted({*excluded(folder), *wanted}))
    index = open_table(folder, INDEX)
    return (0 if index is None else index.rows) - len(ShardDataset.open(folder))


def compact(folder: str | Path) -> int:
    """Remove the bytes of excluded sources: the shards that hold them are rewritten without them.

    Their clips stay in the table of clips as planned and are recorded as rejects (exclude/taken_down), so that counts add up; their
    captions are blanked. Returns the number of samples removed. If it is killed midway, run it or `videoar tokenize` again.
    """
    folder = Path(folder)
    info, spec = open_folder(folder)
    manifest = Manifest(folder)
    removed = 0
    with FolderLock(folder):
        gone = excluded(folder)
        if not gone:
            return 0
        refuse_old(folder)
        remove_index(folder)
        level = int(info.get("pipeline", {}).get("zstd_level", 3))
        for group, names, _ in manifest.shards():
            clips = {clip.key: clip for clip in manifest.clips(group)}
            for name in names:
                rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
                dropped = [clips[row["key"]] for row in rows if hidden(row["source"], gone)]
                if not dropped:
                    continue
                kept = []
                for row in rows:
                    if not hidden(row["source"], gone):
                        sample = read_sample(folder / f"{name}.tar", row, shard=name)
                        kept.append(EncodedClip(clips[row["key"]], sample.bits, sample.features))
                rejects = [Reject(**plain) for plain in read_info(folder / f"{name}.parquet").rejects]
                # The record goes first: a tar without a record is recomputed, and no record ever describes another tar.
                (folder / f"{name}.parquet").unlink()
                (folder / f"{name}.tar").unlink()
                write_shard(folder, name, kept, [*rejects, *map(taken_down, dropped)], spec, zstd_level=level)
                removed += len(dropped)
        manifest.rewrite_clips(lambda clip: replace(clip, caption="", extra={}) if hidden(clip.source, gone) else clip)
        finish(manifest)
    return removed
