"""Counts of a job: sums over the reports of a run, and over the whole folder, in words."""

from __future__ import annotations

from pathlib import Path

from cluster.runtime.atomic_files import write_json
from cluster.tables.table_folder import TableFolder
from pipeline.books.index import finish
from pipeline.encoding.encoder import GroupReport
from pipeline.job.summary import RunTotals, describe, summarize
from pipeline.records import Bucket
from pipeline.shards.commit_record import ShardInfo
from pipeline.shards.manifest import Manifest
from tests.helpers.encoding import BUCKETS, config, encode_all
from tests.helpers.fakes import FakeCodec


def test_reports_are_added_up() -> None:
    totals = RunTotals()
    refused = ({"reason": "killed"},)
    for group in range(2):
        infos = tuple(ShardInfo(f"f005x16x16/shard-{group:06d}", 3, 15, 120, 999, "0" * 64, refused) for _ in range(2))
        totals.add(GroupReport(group, infos, {"encode": 1.5, "write": 0.25}))
    assert (totals.new_shards, totals.refused, dict(totals.seconds)) == (4, 4, {"encode": 3.0, "write": 0.5})


def test_the_summary_counts_the_folder(folder: Path, tmp_path: Path) -> None:
    settings = config(tmp_path)
    plain = {"format": 1, "spec": FakeCodec.spec.plain(), "fps": settings.fps, "buckets": [b.name for b in BUCKETS]}
    write_json(folder / "dataset.json", {**plain, "features": False})
    encode_all(folder, settings)
    summary = summarize(folder, Manifest(folder), RunTotals(new_shards=2), finish(Manifest(folder)))
    rows = TableFolder.open(folder / "index").group(0)
    assert summary.encoded == summary.clips == rows.num_rows > 12 and summary.videos == summary.videos_used == 2
    assert summary.shards == len(list(folder.glob("*/*.tar"))) > summary.new_shards == 2
    assert summary.bytes == sum(path.stat().st_size for path in folder.glob("*/*.tar"))
    assert summary.frames == sum(Bucket.parse(name).frames for name in rows["bucket"].to_pylist()) and summary.rejects == {
        "too_short": 1
    }
    lines = describe(summary).splitlines()
    assert lines[:2] == [
        "videos: 2, 2 of them used",
        f"clips: {summary.clips} of {summary.clips} encoded; refused videos and spans: 1 too_short",
    ]
    assert lines[-1] == f"digest: {summary.digest}"
