from __future__ import annotations

from pathlib import Path

from cluster.runtime.atomic_files import write_json
from pipeline.books.index import finish
from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import PipelineConfig
from pipeline.records import Reject, SourceVideo
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.writer import EncodedClip, write_shard
from tests.helpers.fakes import FakeCodec, encoded
from tests.helpers.plans import BUCKET, merged, plan


def test_finish_joins_what_is_committed(tmp_path: Path) -> None:
    manifest = merged(tmp_path, [plan("a", [0, 1, 2]), plan("bad", [])])
    spec = FakeCodec.spec
    write_json(
        tmp_path / "dataset.json", {"format": 1, "spec": spec.plain(), "fps": 8.0, "buckets": [BUCKET.name], "features": False}
    )
    name = f"{BUCKET.name}/shard-000000"
    refused = Reject("a", "encode", "time_out", "slow", 2.0, 2.625)
    assert not manifest.committed([name])
    write_shard(tmp_path, name, [encoded(0, source="a"), encoded(1, source="a")], [refused], spec)
    assert manifest.committed([name])
    digest = finish(manifest)
    assert finish(manifest) == digest, "finishing twice changes nothing"
    dataset = ShardDataset.open(tmp_path)
    assert dataset.digest == digest and len(dataset) == 2 and dataset.buckets() == [BUCKET] and dataset.fps == 8.0
    assert [(r.source, r.stage) for r in manifest.rejects()] == [("bad", "probe"), ("a", "encode")]
    for number in range(2):
        sample = dataset.read(BUCKET, number)
        assert sample.bits == {encoded(n).clip.key: encoded(n).bits for n in (0, 1)}[sample.key]


def test_retried_clips_and_videos_get_new_shards_and_one_outcome(tmp_path: Path) -> None:
    spec = FakeCodec.spec
    write_json(
        tmp_path / "dataset.json", {"format": 1, "spec": spec.plain(), "fps": 8.0, "buckets": [BUCKET.name], "features": False}
    )
    manifest = merged(tmp_path, [plan("a", [0, 1, 2]), plan("bad", [])])
    first, second = f"{BUCKET.name}/shard-000000", f"{BUCKET.name}/shard-000001"
    lost = manifest.clips(0)[2]
    refused = Reject("a", "encode", "time_out", "slow", lost.begin, lost.end, key=lost.key)
    write_shard(tmp_path, first, [EncodedClip(c, b"1") for c in manifest.clips(0)[:2]], [refused], spec)
    finish(manifest)
    before = (tmp_path / f"{first}.parquet").read_bytes()

    videos, clips = manifest.quarantined()
    assert videos == {"bad"} and [c.key for c in clips] == [lost.key]
    generation = manifest.begin_generation([SourceVideo("bad")], clips)
    write_part(manifest.part(0), [plan("bad", [7])])
    merge(manifest, generation, PipelineConfig(clips_per_shard=3, min_free_gb=0), 1)
    assert [c.key for c in manifest.clips(1)] == [plan("bad", [7]).clips[0].key, lost.key] and manifest.groups() == 2
    write_shard(tmp_path, second, [EncodedClip(c, b"2") for c in manifest.clips(1)], [], spec)
    finish(manifest)
    assert manifest.rejects() == [], "what was tried again with success is no longer refused"
    assert (tmp_path / f"{first}.parquet").read_bytes() == before
    assert manifest.quarantined() == (set(), [])
