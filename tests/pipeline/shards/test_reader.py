from __future__ import annotations

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from pipeline.records import Bucket
from pipeline.shards.reader import CorruptSample, read_sample
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
