from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path

import pyarrow.parquet as pq
import webdataset
import zstandard

from pipeline.shards.writer import write_shard
from tests.helpers.fakes import FakeCodec, encoded

NAME = "f005x16x16/shard-000000"


def write(folder: Path, count: int = 3, **fields: object) -> list[dict]:
    write_shard(folder, NAME, [encoded(number, **fields) for number in range(count)], [], FakeCodec.spec)
    return pq.read_table(folder / f"{NAME}.parquet").to_pylist()


def test_equal_samples_make_equal_bytes_in_any_order(tmp_path: Path) -> None:
    samples = [encoded(number) for number in range(5)]
    first = write_shard(tmp_path / "a", NAME, samples, [], FakeCodec.spec)
    second = write_shard(tmp_path / "b", NAME, samples[::-1], [], FakeCodec.spec)
    assert first == second
    for suffix in ("tar", "parquet"):
        assert (tmp_path / "a" / f"{NAME}.{suffix}").read_bytes() == (tmp_path / "b" / f"{NAME}.{suffix}").read_bytes()


def test_plain_webdataset_reads_a_shard(tmp_path: Path) -> None:
    rows = write(tmp_path, caption="words")
    found = list(webdataset.WebDataset(str(tmp_path / f"{NAME}.tar"), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in found] == [row["key"] for row in rows]
    wanted = {encoded(n).clip.key: encoded(n).bits for n in range(3)}
    for sample in found:
        assert sample["txt"] == b"words" and json.loads(sample["json"])["bits"] == 8
        assert zstandard.ZstdDecompressor().decompress(sample["bits.zst"]) == wanted[sample["__key__"]]


def test_tar_is_ustar_with_fixed_times_and_sorted_members(tmp_path: Path) -> None:
    write(tmp_path)
    data = (tmp_path / f"{NAME}.tar").read_bytes()
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        members = tar.getmembers()
    assert [member.name for member in members] == sorted(member.name for member in members)
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    assert data[257:265] == b"ustar\x0000"


def test_zstd_frames_carry_size_and_checksum(tmp_path: Path) -> None:
    row = write(tmp_path)[0]
    data = (tmp_path / f"{NAME}.tar").read_bytes()[row["bits_offset"] :][: row["bits_size"]]
    parameters = zstandard.get_frame_parameters(data)
    assert parameters.has_checksum and parameters.content_size == row["bits_raw"]
