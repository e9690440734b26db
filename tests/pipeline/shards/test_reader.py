from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import xxhash
import zstandard

from pipeline.records import Bucket
from pipeline.shards.reader import CorruptSample, Numbers, read_members, read_sample
from pipeline.shards.writer import write_shard
from tests.helpers.fakes import FakeCodec, encoded

NAME = "f005x16x16/shard-000000"


def write(folder: Path, count: int = 3, **fields: object) -> list[dict]:
    write_shard(folder, NAME, [encoded(number, **fields) for number in range(count)], [], FakeCodec.spec)
    return pq.read_table(folder / f"{NAME}.parquet").to_pylist()


def test_samples_come_back_byte_for_byte(tmp_path: Path) -> None:
    rows = write(tmp_path, caption="a cat, très vite")
    assert [row["key"] for row in rows] == sorted(encoded(n).clip.key for n in range(3))
    wanted = {encoded(n).clip.key: encoded(n).bits for n in range(3)}
    for row in rows:
        sample = read_sample(tmp_path / f"{NAME}.tar", row)
        assert sample.bits == wanted[row["key"]] and sample.caption == "a cat, très vite" and sample.features is None
        assert sample.bucket == Bucket(frames=5, height=16, width=16)
        assert sample.meta["latent"] == [2, 2, 2] and sample.meta["tokenizer"] == FakeCodec.spec.digest
        assert sample.meta["extra"] == {"licence": "CC0"} and dict(row["scores"]) == {"luma": 100.0}


@pytest.mark.parametrize("member", ["bits", "json", "txt"])
def test_a_flipped_byte_is_named(tmp_path: Path, member: str) -> None:
    row = write(tmp_path, caption="words")[1]
    path = tmp_path / f"{NAME}.tar"
    data = bytearray(path.read_bytes())
    data[row[f"{member}_offset"] + row[f"{member}_size"] // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(CorruptSample, match=row["key"]) as caught:
        read_sample(path, row)
    assert str(path) in str(caught.value)


def test_a_tar_cut_off_is_named(tmp_path: Path) -> None:
    row = write(tmp_path)[2]
    path = tmp_path / f"{NAME}.tar"
    path.write_bytes(path.read_bytes()[: row["bits_offset"] + 3])
    with pytest.raises(CorruptSample, match=r"bits\.zst is damaged"):
        read_sample(path, row)


def test_many_members_come_back_at_once_or_not_at_all(tmp_path: Path) -> None:
    rows = write(tmp_path, 5)
    path = tmp_path / f"{NAME}.tar"
    data = path.read_bytes()
    row = {name: np.array([row[f"bits_{name}"] for row in rows]) for name in ("offset", "size", "raw")}
    digests = [row["bits_xxh3"] for row in rows]

    def read(raw: Numbers = row["raw"], digests: list[str] = digests) -> list[bytes] | None:
        with path.open("rb") as file:
            found = read_members([file.fileno()] * 5, row["offset"], row["size"], digests, raw)
        return None if found is None else [bytes(part) for part in found]

    wanted = [read_sample(path, row).bits for row in rows]
    assert read() == wanted == read(raw=np.empty(0, np.int64))
    assert read(raw=row["raw"] + 1) is None and read(digests=[*digests[:-1], digests[0]]) is None
    flipped = bytearray(data)
    flipped[row["offset"][2] + row["size"][2] // 2] ^= 1
    path.write_bytes(flipped)
    assert read() is None
    # The bytes of an earlier read must not stand in for those that a shorter file no longer has.
    path.write_bytes(data)
    assert read() == wanted
    path.write_bytes(data[: row["offset"][4] + 3])
    assert read() is None


def test_a_frame_that_lies_is_found(tmp_path: Path) -> None:
    frame = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(b"tokens" * 40))
    frame[-1] ^= 1
    path = tmp_path / "tar"
    path.write_bytes(frame)
    at, size = np.array([0]), np.array([len(frame)])
    with path.open("rb") as file:
        assert read_members([file.fileno()], at, size, [xxhash.xxh3_64_hexdigest(frame)], np.array([240])) is None
