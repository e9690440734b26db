"""A block of planned parts, settled: duplicates refused, clips of kept spans laid out with the weight before each.

In:  consecutive parts, the copies that were found among all videos.
Out: three files per block: clips, rejects, fingerprints, each in the order of the corpus; `Settled`, their sums.

Blocks are settled independently; what they need of each other is one number, the weight of all blocks before.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.books import exact_copies, near_copies, parts
from pipeline.books.parts import Flat, Numbers
from pipeline.books.shard_groups import Cut
from pipeline.records import Bucket, Clip, Reject, clip_key
from pipeline.shards.generation import Generation
from pipeline.shards.schemas import CLIPS, FINGERPRINTS, REJECTS, clip_rows, reject_rows

WEIGHT = "weight"
"""Column of a block's clips: the weight of the block's spans before this clip's own."""
SETTLED = pa.schema([*(field for field in CLIPS if field.name not in ("group", "shard")), (WEIGHT, pa.int64())])
_SUMS = b"sums"
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Settled:
    """Sums over a block."""

    weight: int
    """Of all spans."""
    top: int
    """Before the last span."""
    clips: int
    rejects: int
    prints: int
    used: int
    """Videos with clips."""
    used_before: int
    """Those of them that had clips before this generation."""
    last: tuple[str, float] | None
    """Source and begin of the last span."""


@dataclass(frozen=True)
class Block:
    """Consecutive parts, and where the results go."""

    paths: tuple[Path, ...]
    first: int
    """Number of their first video in the generation."""
    out: Path
    """Path of the results without an ending."""

    def file(self, kind: str) -> Path:
        """Return the path of one kind of result."""
        return self.out.with_name(f"{self.out.name}.{kind}.arrow")


@dataclass(frozen=True)
class Found:
    """The copies among the videos of a generation."""

    exact: tuple[Path, ...]
    refuse: bool
    """Whether exact copies are refused; else their clips get keys of their own."""
    near: tuple[Path, ...] = ()


def settle(folder: Path, block: Block, found: Found, cut: Cut, min_free_gb: float) -> Settled:
    """Settle a block. What an earlier run settled is not computed again. Raises DamagedFile, DiskFull."""
    if block.file("clips").exists():
        return _sums_of(block.file("clips"))
    rows = parts.read_parts(block.paths)
    end = block.first + rows.num_rows
    copies = exact_copies.copies_of(found.exact, block.first, end)
    copied = copies["video"].to_numpy() - block.first
    clips, rejects = parts.clips_of(rows), parts.rejects_of(rows)
    refusals = [Flat(rejects.table, rejects.video)]
    if found.refuse:
        gone = np.zeros(rows.num_rows, bool)
        gone[copied] = True
        clips = clips.where(~gone[clips.video])
        refusals = [rejects.where(~gone[rejects.video]), _exact_rejects(rows, copies, copied)]
    elif len(copied):
        clips = _with_own_keys(clips, copies, copied)
    spans = near_copies.spans_of(found.near, block.first, end)
    if spans.num_rows:
        clips, refused = _without_near(clips, spans, block.first)
        refusals.append(refused)
    table, weight, top, last = _weighed(clips.table, cut, None)
    used = np.unique(clips.video)
    generation = Generation.open(folder)
    assert generation is not None
    before = generation.before(block.first, end).to_numpy()
    prints, owners = parts.prints_of(rows)
    kept = np.isin(owners, used)
    fingerprints = pa.table(
        {"source": rows["source"].take(pa.array(owners[kept])), "grey": prints.filter(pa.array(kept))}, schema=FINGERPRINTS
    )
    refused_rows = _in_order(refusals)
    sums = Settled(
        weight,
        top,
        table.num_rows,
        refused_rows.num_rows,
        fingerprints.num_rows,
        len(used),
        int((before[used] == 2).sum()),
        last,
    )
    parts.write_table(block.file("rejects"), refused_rows, min_free_gb=min_free_gb)
    parts.write_table(block.file("prints"), fingerprints, min_free_gb=min_free_gb)
    _write_clips(block, table, sums, min_free_gb)
    return sums


def settle_retried(
    clips: Sequence[Clip], block: Block, cut: Cut, last: tuple[str, float] | None, min_free_gb: float
) -> Settled:
    """Settle the clips that are tried again, as they were planned. last: the last span of the videos before them."""
    table, weight, top, end = _weighed(clip_rows(clips, 0).drop_columns(["group", "shard"]), cut, last)
    sums = Settled(weight, top, table.num_rows, 0, 0, 0, 0, end)
    parts.write_table(block.file("rejects"), REJECTS.empty_table())
    parts.write_table(block.file("prints"), FINGERPRINTS.empty_table())
    _write_clips(block, table, sums, min_free_gb)
    return sums


def _write_clips(block: Block, table: pa.Table, sums: Settled, min_free_gb: float) -> None:
    # Written last: it says that the block is settled.
    record = {_SUMS: json.dumps(asdict(sums)).encode()}
    parts.write_table(block.file("clips"), table.replace_schema_metadata(record), min_free_gb=min_free_gb)


def _sums_of(path: Path) -> Settled:
    plain = json.loads(parts.read_table(path).schema.metadata[_SUMS])
    return Settled(**{**plain, "last": None if plain["last"] is None else tuple(plain["last"])})


def _weighed(table: pa.Table, cut: Cut, last: tuple[str, float] | None) -> tuple[pa.Table, int, int, tuple[str, float] | None]:
    """Return clips with the weight before each; the weight of all and before the last span; that span. last: the span before the first clip."""
    if not table.num_rows:
        return table.append_column(WEIGHT, pa.array([], pa.int64())).cast(SETTLED), 0, 0, last
    begins = table["begin"].to_numpy()
    sources = table["source"].combine_chunks()
    new = np.ones(len(begins), bool)
    new[1:] = (begins[1:] != begins[:-1]) | pc.not_equal(sources[1:], sources[:-1]).to_numpy(zero_copy_only=False)
    starts = np.flatnonzero(new)
    weights = cut.weights(table["bucket"], starts)
    if last == (sources[0].as_py(), float(begins[0])):
        weights[0] = 0  # its span has begun, and is counted, before
    before = (np.cumsum(weights) - weights)[np.cumsum(new) - 1]
    if last == (sources[0].as_py(), float(begins[0])):
        before[: starts[1] if len(starts) > 1 else len(before)] = -1
    made = table.append_column(WEIGHT, pa.array(before)).select(SETTLED.names).cast(SETTLED)
    return made, int(weights.sum()), int(before[-1]), (sources[-1].as_py(), float(begins[-1]))


def _exact_rejects(rows: pa.Table, copies: pa.Table, copied: Numbers) -> Flat:
    sources = rows["source"].take(pa.array(copied)).to_pylist()
    found = [
        Reject(source, "dedup", "exact_copy", f"same bytes as {first}")
        for source, first in zip(sources, copies["first"].to_pylist(), strict=True)
    ]
    return Flat(reject_rows(found), copied)


def _with_own_keys(clips: Flat, copies: pa.Table, copied: Numbers) -> Flat:
    number = dict(zip(copied.tolist(), copies["before"].to_pylist(), strict=True))
    mine = np.isin(clips.video, copied)
    keys = []
    for row, video in zip(
        clips.table.filter(pa.array(mine)).select(["source_digest", "begin", "fps", "bucket"]).to_pylist(),
        clips.video[mine].tolist(),
        strict=True,
    ):
        bucket = Bucket.parse(row["bucket"])
        keys.append(clip_key(row["source_digest"], row["begin"], row["fps"], bucket, number[video]))
    column = pc.replace_with_mask(clips.table["key"].combine_chunks(), pa.array(mine), pa.array(keys, pa.string()))
    at = clips.table.schema.get_field_index("key")
    return Flat(clips.table.set_column(at, "key", column), clips.video)


def _without_near(clips: Flat, spans: pa.Table, first: int) -> tuple[Flat, Flat]:
    """Return the clips without those of refused spans, and the rejects of these."""
    gone = {(row["video"] - first, row["begin"]): (row["end"], row["source"], row["agreement"]) for row in spans.to_pylist()}
    some = np.flatnonzero(np.isin(clips.video, [video for video, _ in gone]))
    kept: Mask = np.ones(len(clips.video), bool)
    rejects: list[Reject] = []
    owners: list[int] = []
    taken = clips.table.take(pa.array(some)).select(["source", "begin", "scores"]).to_pylist()
    for at, row in zip(some.tolist(), taken, strict=True):
        span = int(clips.video[at]), row["begin"]
        if span not in gone:
            continue
        kept[at] = False
        if not owners or (owners[-1], rejects[-1].begin) != span:
            end, source, score = gone[span]
            scores = {**dict(row["scores"]), "agreement": round(score, 4)}
            rejects.append(Reject(row["source"], "dedup", "near_copy", f"shows what {source} shows", span[1], end, scores))
            owners.append(span[0])
    return clips.where(kept), Flat(reject_rows(rejects), np.array(owners, np.int64))


def _in_order(refusals: Sequence[Flat]) -> pa.Table:
    """Return rejects in the order of their videos; those of one video in the order given."""
    order = np.argsort(np.concatenate([each.video for each in refusals]), kind="stable")
    table = pa.concat_tables([each.table.cast(REJECTS) for each in refusals])
    already = (order[1:] > order[:-1]).all()
    return table.combine_chunks() if already else table.take(pa.array(order)).combine_chunks()
