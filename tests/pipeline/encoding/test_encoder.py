"""A shard group: every planned clip in its shard, the same bytes each time, refusals that disturb no other clip."""

from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq

from pipeline.shards.commit_record import read_info
from pipeline.shards.manifest import Manifest
from pipeline.shards.reader import read_sample
from tests.helpers.encoding import config, encode_all, planned


def test_shards_hold_every_planned_clip_and_are_made_again_alike(folder: Path, tmp_path: Path) -> None:
    codec, first = encode_all(folder, config(tmp_path))
    assert max(codec.batches) == 2
    rows = [row for path in sorted(folder.glob("*/shard-*.parquet")) for row in pq.read_table(path).to_pylist()]
    manifest = Manifest(folder)
    wanted = {clip.key for group in range(manifest.groups()) for clip in manifest.clips(group)}
    assert {row["key"] for row in rows} == wanted and len(rows) == len(wanted) > 12
    for path in folder.glob("*/shard-*"):
        path.unlink()
    _, second = encode_all(folder, config(tmp_path))
    assert first == second


def test_a_video_that_vanished_is_refused_and_the_others_keep_their_batches(folder: Path, tmp_path: Path, clips: Path) -> None:
    _, whole = encode_all(folder, config(tmp_path))
    table = {p.stem: pq.read_table(p).to_pylist() for p in (folder / "f005x32x32").glob("*.parquet")}
    for path in folder.glob("*/shard-*"):
        path.unlink()
    broken = planned(
        tmp_path / "shards", [clips / "bikes.mp4", clips / "carphone_pristine.mp4"], config(tmp_path), move="bikes.mp4"
    )
    _, rest = encode_all(broken, config(tmp_path))
    for name, rows in table.items():
        info = read_info(broken / "f005x32x32" / f"{name}.parquet")
        again = {row["key"]: row for row in pq.read_table(broken / "f005x32x32" / f"{name}.parquet").to_pylist()}
        assert info.samples + len(info.rejects) == len(rows)
        assert {r["reason"] for r in info.rejects} <= {"not_found"}
        for row in rows:
            gone = row["source"].endswith("bikes.mp4")
            assert gone == (row["key"] not in again)
    assert set(rest) < set(whole) and any(name.endswith(".tar") for name in rest)


def test_features_are_stored_as_bfloat16(folder: Path, tmp_path: Path) -> None:
    encode_all(folder, config(tmp_path, features=True))
    shard = folder / "f009x32x48" / "shard-000000"
    sample = read_sample(f"{shard}.tar", pq.read_table(f"{shard}.parquet").to_pylist()[0])
    assert sample.features is not None and len(sample.features) == 3 * 8 * 4 * 6 * 2 and sample.meta["features"]
