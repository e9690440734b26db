from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from cluster.runtime.atomic_files import write_json
from pipeline.maintenance import inspect, takedown, verify
from pipeline.records import Bucket, Reject
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import EncodedClip, write_shard
from tests.helpers.fakes import FakeCodec
from tests.helpers.plans import BUCKET, merged, plan

SHARDS = [f"{BUCKET.name}/shard-00000{number}" for number in range(3)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three shards of two videos, one refused video, one clip refused by the encoder."""
    manifest = merged(tmp_path, [plan("v/a", [0, 1, 2, 3]), plan("bad", []), plan("v/b", [4, 5, 6])])
    spec = FakeCodec.spec
    plain = {"format": 1, "spec": spec.plain(), "fps": 8.0, "buckets": [BUCKET.name], "features": False}
    write_json(tmp_path / "dataset.json", plain)
    size = 2 * spec.frame_bytes(2, 2)
    for group, (name,), _ in manifest.shards():
        clips = manifest.clips(group)
        rejects = [Reject(c.source, "encode", "damaged", "", c.begin, c.end) for c in clips if c.begin == 5]
        samples = [EncodedClip(c, bytes([round(c.begin)]) * size) for c in clips if c.begin != 5]
        write_shard(tmp_path, name, samples, rejects, spec)
    manifest.finish()
    return tmp_path


def test_a_sound_folder_adds_up(folder: Path) -> None:
    report = verify.verify(folder)
    assert report.sound and report.damaged == ()
    assert (report.videos, report.videos_used, report.refused_videos) == (3, 2, 1)
    assert (report.clips, report.encoded, report.refused_clips, report.shards) == (7, 6, 1, 3)
    assert verify.digest(folder) == ShardDataset.open(folder).digest


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 0x40
    path.write_bytes(data)


def test_every_flipped_byte_of_a_tar_is_found(folder: Path) -> None:
    path = folder / f"{SHARDS[1]}.tar"
    whole = path.read_bytes()
    for at in range(0, len(whole), 211):
        flip(path, at)
        report = verify.verify(folder)
        assert report.damaged == (SHARDS[1],) and SHARDS[1] in report.problems[0], f"byte {at}"
        path.write_bytes(whole)
    assert verify.verify(folder).sound


def test_each_damaged_shard_is_named(folder: Path) -> None:
    before = verify.digest(folder)
    flip(folder / f"{SHARDS[0]}.tar", 600)
    assert verify.digest(folder) != before, "the digest is over the bytes as they are"
    (folder / f"{SHARDS[1]}.tar").unlink()
    (folder / f"{SHARDS[2]}.parquet").write_bytes(b"PAR1 broken")
    report = verify.verify(folder)
    assert report.damaged == tuple(SHARDS) and len(report.problems) == 3 and not report.sound


def test_a_shard_not_committed_is_named(folder: Path) -> None:
    (folder / f"{SHARDS[2]}.parquet").unlink()
    assert "not committed" in verify.verify(folder).problems[0]
    with pytest.raises(DatasetError, match="not committed"):
        verify.digest(folder)


def test_a_lost_or_doubled_clip_is_found(folder: Path) -> None:
    manifest = Manifest(folder)
    clips = manifest.clips(0)
    size = 2 * FakeCodec.spec.frame_bytes(2, 2)
    write_shard(folder, SHARDS[0], [EncodedClip(c, bytes(size)) for c in clips[:2]], [], FakeCodec.spec)
    assert "3 clips planned, 2 encoded and 0 refused" in verify.verify(folder).problems[0]


def test_bits_of_the_wrong_length_are_found(folder: Path) -> None:
    clips = Manifest(folder).clips(0)
    write_shard(folder, SHARDS[0], [EncodedClip(c, b"12345") for c in clips], [], FakeCodec.spec)
    assert f"are not those of a {BUCKET.name} clip" in verify.verify(folder).problems[0]


def test_an_index_that_lags_is_found(folder: Path) -> None:
    size = 2 * FakeCodec.spec.frame_bytes(2, 2)
    write_shard(folder, SHARDS[0], [EncodedClip(c, b"\1" * size) for c in Manifest(folder).clips(0)], [], FakeCodec.spec)
    assert "does not hold exactly the committed rows" in verify.verify(folder).problems[0]
    (folder / "index.parquet").unlink()
    assert "index.parquet is missing" in verify.verify(folder).problems[0]


def test_stat_counts(folder: Path) -> None:
    found = inspect.stat(folder)
    assert found["buckets"] == {BUCKET.name: {"shards": 3, "samples": 6, "frames": 30, "tokens": 6 * 2 * 5, "bytes": 3 * 10240}}
    assert found["refused"] == {"encode/damaged": 1, "probe/unreadable": 1} and found["videos"] == 3
    json.dumps(found)


def test_excluded_sources_vanish_from_readers_at_once(folder: Path) -> None:
    before = ShardDataset.open(folder)
    tar = (folder / f"{SHARDS[1]}.tar").read_bytes()
    assert takedown.exclude(folder, ["v/b"]) == 2
    after = ShardDataset.open(folder)
    assert len(before) == 6 and set(after.rows(BUCKET)["source"].to_pylist()) == {"v/a"} and after.digest != before.digest
    assert (folder / f"{SHARDS[1]}.tar").read_bytes() == tar and verify.verify(folder).sound
    assert takedown.exclude(folder, ["v/"]) == 6 and ShardDataset.open(folder).buckets() == []
    with pytest.raises(DatasetError, match="holds nothing of `v/x`"):
        takedown.exclude(folder, ["v/x"])


def test_compaction_removes_the_bytes_and_everything_still_adds_up(folder: Path) -> None:
    assert takedown.compact(folder) == 0, "nothing is excluded yet"
    kept = (folder / f"{SHARDS[0]}.tar").read_bytes()
    takedown.exclude(folder, ["v/b"])
    assert takedown.compact(folder) == 2
    report = verify.verify(folder)
    assert report.sound and (report.clips, report.encoded, report.refused_clips) == (7, 4, 3)
    assert inspect.stat(folder)["refused"] == {"encode/damaged": 1, "exclude/taken_down": 2, "probe/unreadable": 1}
    assert (folder / f"{SHARDS[0]}.tar").read_bytes() == kept and not (folder / f"{SHARDS[2]}.tar").exists()
    assert {c.caption for g in range(3) for c in Manifest(folder).clips(g) if c.source == "v/b"} == {""}
    assert takedown.compact(folder) == 0 and len(ShardDataset.open(folder)) == 4


def test_dataset_errors_name_the_mend(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        ShardDataset.open(tmp_path / "absent")
    (tmp_path / "void").mkdir()
    with pytest.raises(DatasetError, match=r"no dataset\.json"):
        ShardDataset.open(tmp_path / "void")
    dataset = ShardDataset.open(folder)
    with pytest.raises(IndexError, match="has 6 samples"):
        dataset.read(BUCKET, 6)
    assert dataset.rows(Bucket(frames=9, height=16, width=16)).num_rows == 0
    (folder / f"{SHARDS[0]}.tar").unlink()
    with pytest.raises(DatasetError, match=r"shard-000000\.tar: No such file"):
        ShardDataset.open(folder).read(BUCKET, 0)
    (folder / "index.parquet").write_bytes(b"broken")
    with pytest.raises(DatasetError, match="damaged"):
        ShardDataset.open(folder)
    (folder / "index.parquet").unlink()
    with pytest.raises(DatasetError, match="the job has not finished"):
        ShardDataset.open(folder)


def test_rows_are_in_shard_order_and_readable_from_threads(folder: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    dataset = ShardDataset.open(folder)
    rows = dataset.rows(BUCKET)
    assert rows["shard"].to_pylist() == sorted(rows["shard"].to_pylist())
    keys = rows["key"].to_pylist()
    for name in SHARDS:
        own = pq.read_table(folder / f"{name}.parquet")["key"].to_pylist()
        assert own == sorted(own) and own == [k for k, s in zip(keys, rows["shard"].to_pylist()) if s == name]
    numbers = [n % 6 for n in range(300)]
    with ThreadPoolExecutor(8) as threads:
        assert list(threads.map(lambda n: dataset.read(BUCKET, n).key, numbers)) == [keys[n] for n in numbers]


def test_eviction_of_open_tars_does_not_disturb_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.shards.dataset._OPEN_TARS", 1)
    dataset = ShardDataset.open(folder)
    keys = dataset.rows(BUCKET)["key"].to_pylist()
    assert [dataset.read(BUCKET, n).key for n in (0, 5, 0, 3, 1)] == [keys[n] for n in (0, 5, 0, 3, 1)]
    assert len(dataset._tars) == 1
