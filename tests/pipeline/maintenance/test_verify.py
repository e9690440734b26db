from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.maintenance import verify
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError, remove_index
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import EncodedClip, write_shard
from tests.helpers.fakes import FakeCodec
from tests.helpers.plans import BUCKET, SHARDS


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
