from __future__ import annotations

import errno
import shutil
from pathlib import Path

import pytest

from cluster.runtime.atomic_files import write_json
from cluster.runtime.file_lock import FileLock
from pipeline.books.index import finish
from pipeline.job.task_session import FEW, task_session
from pipeline.maintenance import check_shards, inspect, verify
from pipeline.maintenance.takedown import compact
from pipeline.shards.commit_record import ShardInfo
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError, remove_index
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import EncodedClip, write_shard
from tests.helpers.fakes import FakeCodec
from tests.helpers.plans import BUCKET, SHARDS, merged, plan
from tokenizer.quantization.codec_spec import CodecSpec


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
    assert f"is not that of a {BUCKET.name} clip" in verify.verify(folder).problems[0]


def test_an_index_that_lags_is_found(folder: Path) -> None:
    size = 2 * FakeCodec.spec.frame_bytes(2, 2)
    write_shard(folder, SHARDS[0], [EncodedClip(c, b"\1" * size) for c in Manifest(folder).clips(0)], [], FakeCodec.spec)
    assert "does not hold exactly the committed rows" in verify.verify(folder).problems[0]
    remove_index(folder)
    assert "the index is missing" in verify.verify(folder).problems[0]


def many(folder: Path, videos: int = 40) -> Path:
    """A finished folder of many small shards: a sample's bits are its number."""
    manifest = merged(folder, [plan(f"v/{n:03d}", range(3 * n, 3 * n + 3)) for n in range(videos)], size=7)
    spec = FakeCodec.spec
    plain = {"format": 1, "spec": spec.plain(), "fps": 8.0, "buckets": [BUCKET.name], "features": False}
    write_json(folder / "dataset.json", plain)
    size = 2 * spec.frame_bytes(2, 2)
    for group, (name,), _ in manifest.shards():
        write_shard(folder, name, [EncodedClip(c, bytes([int(c.begin) % 256]) * size) for c in manifest.clips(group)], [], spec)
    finish(manifest)
    return folder


def test_tasks_of_any_size_find_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = many(tmp_path / "shards")
    whole = verify.verify(folder)
    assert whole.sound and (whole.shards, whole.encoded, whole.videos_used) == (40, 120, 40)
    for number in (3, 33):
        flip(folder / f"{BUCKET.name}/shard-0000{number:02d}.tar", 700)
    damaged = verify.verify(folder)
    monkeypatch.setattr(verify, "TASK_CLIPS", 4)
    monkeypatch.setattr(verify, "TASK_SHARDS", 3)
    monkeypatch.setattr("pipeline.maintenance.tally.portions", lambda spills: 5)
    assert verify.verify(folder) == damaged and [name[-2:] for name in damaged.damaged] == ["03", "33"]
    for number in (3, 33):
        flip(folder / f"{BUCKET.name}/shard-0000{number:02d}.tar", 700)
    assert verify.verify(folder) == whole
    assert verify.digest(folder) == ShardDataset.open(folder).digest
    assert not (folder / verify.SCRATCH).exists()


def test_a_check_that_is_killed_goes_on_and_reads_anew_what_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = many(tmp_path / "shards", 10)
    monkeypatch.setattr(verify, "TASK_CLIPS", 3)
    read: list[str] = []
    real = check_shards.check_shard

    def watched(folder: Path, name: str, spec: CodecSpec) -> ShardInfo:
        read.append(name[-2:])
        if len(read) == 7:
            raise KeyboardInterrupt
        return real(folder, name, spec)

    monkeypatch.setattr(check_shards, "check_shard", watched)
    with pytest.raises(KeyboardInterrupt):
        verify.verify(folder)
    assert (folder / verify.SCRATCH).is_dir()
    flip(folder / f"{BUCKET.name}/shard-000002.tar", 700)
    read.clear()
    report = verify.verify(folder)
    assert read == ["02", "06", "07", "08", "09"], "what was checked and is unchanged is not read again"
    assert report.damaged == (f"{BUCKET.name}/shard-000002",) and report.shards == 10
    assert not (folder / verify.SCRATCH).exists()


def test_two_checks_at_once_do_not_take_each_others_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first to end removed what the other had spilled, which then failed with a traceback."""
    refused: list[str] = []
    real = check_shards.check_shard

    def at_once(path: Path, name: str, spec: CodecSpec) -> ShardInfo:
        if not refused:
            with pytest.raises(DatasetError, match=r"is being verified by .*process \d+ on .*; wait for it") as told:
                verify.verify(folder)
            refused.append(str(told.value))
        return real(path, name, spec)

    monkeypatch.setattr(check_shards, "check_shard", at_once)
    assert verify.verify(folder).sound and refused
    assert not (folder / verify.SCRATCH).exists()
    assert verify.verify(folder).sound


def test_a_folder_that_cannot_be_written_is_verified(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(lock: FileLock) -> FileLock:
        raise PermissionError(errno.EACCES, "Permission denied", str(lock.path))

    monkeypatch.setattr(FileLock, "__enter__", read_only)
    assert verify.verify(folder).sound
    assert not (folder / verify.SCRATCH).exists()


def test_a_sample_in_two_shards_is_found(tmp_path: Path) -> None:
    folder = many(tmp_path / "shards", 3)
    for ending in ("tar", "parquet"):
        shutil.copy(folder / f"{BUCKET.name}/shard-000000.{ending}", folder / f"{BUCKET.name}/shard-000001.{ending}")
    problems = verify.verify(folder).problems
    assert any("a sample is in" in problem for problem in problems), problems


def test_ray_finds_what_one_process_finds(tmp_path: Path) -> None:
    folder = many(tmp_path / "shards", 6)
    flip(folder / f"{BUCKET.name}/shard-000002.tar", 700)
    here = verify.verify(folder)
    with task_session("verify", FEW + 1) as run:
        assert verify.verify(folder, run) == here
        assert inspect.stat(folder, run) == inspect.stat(folder)
        flip(folder / f"{BUCKET.name}/shard-000002.tar", 700)
        (folder / "excluded.json").write_text('["v/001", "v/004"]')
        assert compact(folder, run) == 6
        assert verify.verify(folder, run).sound and verify.digest(folder, run) == verify.digest(folder)
