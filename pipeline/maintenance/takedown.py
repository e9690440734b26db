"""Taking sources down: they are hidden from every reader at once, and later removed from the shards.

In:  a SHARDS folder and names of sources.
Out: excluded.json (`exclude`); shards without the excluded samples (`compact`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from cluster.runtime.atomic_files import write_json
from pipeline.books.index import finish
from pipeline.books.tasks import Runner, serially
from pipeline.records import Clip, Reject
from pipeline.shards.commit_record import read_info
from pipeline.shards.dataset import ShardDataset, open_folder
from pipeline.shards.layout import (
    CLIPS,
    EXCLUDED,
    REJECTS,
    DatasetError,
    FolderLock,
    excluded,
    hidden,
    open_table,
    recount_hidden,
    refuse_old,
    remove_index,
    taken_down,
    without,
)
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import read_sample
from pipeline.shards.writer import EncodedClip, write_shard

TASK_GROUPS = 64
"""Shard groups that one task looks through."""


def exclude(folder: str | Path, sources: Iterable[str], run: Runner = serially) -> int:
    """Take sources down: every reader skips their samples from the next time it opens the folder; no shard is rewritten.

    A name that ends in / stands for all sources below it. Returns the number of samples that are now hidden. The names are looked for in
    one pass over the books, by tasks; readers then need none (layout.recount_hidden). Raises DatasetError for a source that the folder does
    not hold.
    """
    folder = Path(folder)
    with FolderLock(folder):
        wanted = list(sources)
        missing = _missing(folder, wanted, run)
        if missing:
            raise DatasetError(f"{folder}: holds nothing of `{missing[0]}`; name sources as the table of clips does")
        write_json(folder / EXCLUDED, sorted({*excluded(folder), *wanted}))
        hidden = recount_hidden(folder, run)
    ShardDataset.open(folder)
    return hidden


def _missing(folder: Path, wanted: Sequence[str], run: Runner) -> list[str]:
    """Return the names of which the books hold nothing."""
    left = dict.fromkeys(wanted)
    for table in (CLIPS, REJECTS):
        opened = open_table(folder, table)
        calls = [(folder, table, number, wanted) for number in range(0 if opened is None or not left else len(opened.files))]
        for found in run(table, held_by, calls):
            for name in found:
                left.pop(name, None)
    return list(left)


def held_by(folder: Path, table: str, number: int, wanted: Sequence[str]) -> list[str]:
    """Return which of some names a file of the table of clips or of rejects holds something of."""
    opened = open_table(folder, table)
    assert opened is not None
    sources = opened.matching(number, "source", wanted, ["source"])["source"].unique()
    names = pa.table({"source": sources})
    return [name for name in wanted if pc.any(pc.invert(without(names, [name]))).as_py()]


def compact(folder: str | Path, run: Runner = serially) -> int:
    """Remove the bytes of excluded sources: the shards that hold them are rewritten without them.

    Their clips stay in the table of clips as planned and are recorded as rejects (exclude/taken_down), so that counts add up; their
    captions are blanked. Returns the number of samples removed. If it is killed midway, run it or `videoar tokenize` again.
    """
    folder = Path(folder)
    info, _ = open_folder(folder)
    manifest = Manifest(folder)
    with FolderLock(folder):
        gone = excluded(folder)
        if not gone:
            return 0
        refuse_old(folder)
        remove_index(folder)
        level = int(info.get("pipeline", {}).get("zstd_level", 3))
        groups = manifest.shards()
        calls = []
        while some := list(islice(groups, TASK_GROUPS)):
            calls.append((folder, gone, some, level))
        removed: int = sum(run("shards", compact_groups, calls))
        manifest.rewrite_clips(lambda clip: replace(clip, caption="", extra={}) if hidden(clip.source, gone) else clip)
        finish(manifest, run)
    return removed


def compact_groups(folder: Path, gone: Sequence[str], groups: Sequence[tuple[int, Sequence[str], int]], level: int) -> int:
    """Rewrite the shards of some groups that hold excluded samples. Returns the number of samples removed."""
    _, spec = open_folder(folder)
    manifest = Manifest(folder)
    removed = 0
    for group, names, _ in groups:
        clips: dict[str, Clip] = {}
        for name in names:
            kept_rows = without(pq.read_table(folder / f"{name}.parquet", columns=["source"]), gone)
            if kept_rows is None or pc.all(kept_rows).as_py() is not False:
                continue
            clips = clips or {clip.key: clip for clip in manifest.clips(group)}
            rows = pq.read_table(folder / f"{name}.parquet").to_pylist()
            dropped = [clips[row["key"]] for row in rows if hidden(row["source"], gone)]
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
    return removed
