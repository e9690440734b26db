from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipeline.records import Reject
from pipeline.shards.commit_record import ShardInfo, dataset_digest, read_info, summed
from pipeline.shards.reader import CorruptSample
from pipeline.shards.schemas import reject_rows
from pipeline.shards.writer import write_shard
from tests.helpers.fakes import FakeCodec, encoded

NAME = "f005x16x16/shard-000000"


def test_record_keeps_refusals_and_a_shard_of_none_has_no_tar(tmp_path: Path) -> None:
    reject = Reject("b.mp4", "encode", "time_out", "b.mp4: too long", 1.0, 2.0)
    info = write_shard(tmp_path, NAME, [], [reject], FakeCodec.spec)
    assert info.samples == 0 and not (tmp_path / f"{NAME}.tar").exists()
    again = read_info(tmp_path / f"{NAME}.parquet")
    assert again == info and Reject(**again.rejects[0]) == reject


def test_a_damaged_record_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path, NAME, [encoded(0)], [], FakeCodec.spec)
    path = tmp_path / f"{NAME}.parquet"
    path.write_bytes(b"PAR1" + b"x" * 100)
    with pytest.raises(CorruptSample, match="damaged commit record"):
        read_info(path)


def test_the_digest_covers_content_and_not_wording() -> None:
    dataset: dict[str, Any] = {"format": 1, "spec": {}, "fps": 8.0, "buckets": [], "features": False, "pipeline": {}}
    infos = [ShardInfo(f"b/shard-{number}", 2, 10, 20, 1024, f"{number}" * 64) for number in range(3)]

    def digest_of(dataset: dict[str, Any], infos: list[ShardInfo], rejects: list[Reject]) -> str:
        shards = ((info.shard, info.samples, info.tar_sha256) for info in infos)
        return dataset_digest(dataset, shards, [reject_rows(rejects[:1]), reject_rows(rejects[1:])])

    rejects = [Reject("b", "probe", "damaged", "one way to say it"), Reject("a", "filters", "black", "", 0.0, 1.0)]
    digest = digest_of(dataset, infos, rejects)
    reworded = [Reject("a", "filters", "black", "", 0.0, 1.0), Reject("b", "probe", "damaged", "another")]
    assert digest_of({**dataset, "pipeline": {"batch": 3}}, infos, reworded) == digest, "order and wording do not matter"
    assert digest_of(dataset, infos[:2], rejects) != digest
    assert digest_of(dataset, infos, rejects[:1]) != digest
    assert digest_of({**dataset, "fps": 12.0}, infos, rejects) != digest
    with pytest.raises(AssertionError, match="sorted by name"):
        digest_of(dataset, infos[::-1], rejects)
    assert summed(infos) == {"shards": 3, "samples": 6, "frames": 30, "tokens": 60, "bytes": 3072, "refused": 0}
