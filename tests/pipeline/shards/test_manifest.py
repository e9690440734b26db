from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.runtime.atomic_files import write_json
from pipeline.config import PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, Reject, SourceVideo, VideoPlan
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import Encoded, write_shard
from tests.helpers.fakes import FakeCodec, clip, encoded

BUCKET = Bucket(frames=5, height=16, width=16)


def planned(folder: Path, videos: Sequence[Path], config: PipelineConfig, move: str = "") -> Path:
    """Plan real videos into `folder`; `move` names one that is planned and then gone."""
    manifest = Manifest(folder)
    for name in ("clips.parquet", "rejects.parquet"):
        (folder / name).unlink(missing_ok=True)
    sources = [SourceVideo(str(path)) for path in videos]
    manifest.begin_generation(sources)
    with DecoderProcess(config.limits) as decoder:
        plans = [plan_video(video, config, decoder) for video in sources]
    parts = [plan.plain() for plan in plans]
    if move:
        for part in parts:
            for planned_clip in part["clips"]:
                if planned_clip["source"].endswith(move):
                    planned_clip["source"] = f"/gone/{move}"
    write_json(manifest.part(0), parts)
    manifest.merge(config, 1)
    return folder


def plan(source: str, numbers: Sequence[int], digest: str = "") -> VideoPlan:
    digest = digest or source.encode().hex().ljust(32, "0")
    clips = tuple(replace(clip(number, source=source), source_digest=digest) for number in numbers)
    rejects = () if clips else (Reject(source, "probe", "unreadable", "broken"),)
    return VideoPlan(source, digest, clips, rejects)


def merge(folder: Path, plans: Sequence[VideoPlan], size: int = 2, **fields: object) -> Manifest:
    manifest = Manifest(folder)
    manifest.begin_generation([SourceVideo(p.source) for p in plans])
    parts = [plans[at : at + size] for at in range(0, len(plans), size)]
    for number, part in enumerate(parts):
        write_json(manifest.part(number), [p.plain() for p in part])
    settings = PipelineConfig(clips_per_shard=3, min_free_gb=0, **fields)  # type: ignore[arg-type]
    manifest.merge(settings, len(parts))
    return manifest


def test_groups_are_fixed_lists_of_clips(tmp_path: Path) -> None:
    manifest = merge(tmp_path, [plan("a", [0, 1]), plan("bad", []), plan("c", [2, 3, 4]), plan("d", [5, 6])])
    assert [[c.begin for c in manifest.clips(g)] for g in range(manifest.groups())] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [names for _, names, _ in manifest.shards()] == [(f"{BUCKET.name}/shard-00000{i}",) for i in range(3)]
    assert [r.source for r in manifest.rejects()] == ["bad"] and manifest.known() == {"a", "bad", "c", "d"}
    assert manifest.generation() is None


def test_the_plan_does_not_depend_on_the_parts(tmp_path: Path) -> None:
    plans = [plan(name, [i, 10 + i]) for i, name in enumerate("abcdefg")]
    first, second = merge(tmp_path / "a", plans, size=1), merge(tmp_path / "b", plans, size=5)
    assert (tmp_path / "a" / "clips.parquet").read_bytes() == (tmp_path / "b" / "clips.parquet").read_bytes()
    assert first.groups() == second.groups() == 5


def test_a_second_generation_appends_and_leaves_the_first_alone(tmp_path: Path) -> None:
    manifest = merge(tmp_path, [plan("a", [0, 1]), plan("bad", [])])
    before = manifest.clips(0)
    merge(tmp_path, [plan("c", [2, 3, 4, 5])])
    assert manifest.clips(0) == before and [c.begin for c in manifest.clips(1)] == [2, 3, 4]
    assert manifest.groups() == 3 and manifest.known() == {"a", "bad", "c"}
    copy = plan("late", [7], digest=plan("a", [0]).digest)
    merge(tmp_path, [copy])
    assert manifest.groups() == 3 and manifest.rejects()[-1].reason == "exact_copy", "copies are found across generations"


def test_merging_again_after_a_kill_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merge(tmp_path, [plan("a", [0, 1])])
    manifest = Manifest(tmp_path)

    def killed(rejects: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "_write_rejects", lambda self, rejects: killed(rejects))
        with pytest.raises(KeyboardInterrupt):
            merge(tmp_path, [plan("b", [2, 3]), plan("bad", [])])
    assert manifest.groups() == 2, "clips.parquet was replaced before the kill"
    assert [video.source for video in manifest.generation() or ()] == ["b", "bad"]
    manifest.merge(PipelineConfig(clips_per_shard=3, min_free_gb=0), 1)
    assert manifest.groups() == 2 and len(manifest.rejects()) == 1 and manifest.generation() is None


def test_copies_are_refused_or_get_keys_of_their_own(tmp_path: Path) -> None:
    twins = [plan("a", [0]), plan("b", [0], digest=plan("a", [0]).digest), plan("c", [0], digest=plan("a", [0]).digest)]
    manifest = merge(tmp_path / "refuse", twins)
    assert len(manifest.clips(0)) == 1
    assert [(r.source, r.stage, r.reason, r.detail) for r in manifest.rejects()] == [
        (name, "dedup", "exact_copy", "same bytes as a") for name in "bc"
    ]
    manifest = merge(tmp_path / "keep", twins, dedup=False)
    assert len({c.key for c in manifest.clips(0)}) == 3


def test_finish_joins_what_is_committed(tmp_path: Path) -> None:
    manifest = merge(tmp_path, [plan("a", [0, 1, 2]), plan("bad", [])])
    spec = FakeCodec.spec
    write_json(
        tmp_path / "dataset.json", {"format": 1, "spec": spec.plain(), "fps": 8.0, "buckets": [BUCKET.name], "features": False}
    )
    name = f"{BUCKET.name}/shard-000000"
    refused = Reject("a", "encode", "time_out", "slow", 2.0, 2.625)
    assert not manifest.committed([name])
    write_shard(tmp_path, name, [encoded(0, source="a"), encoded(1, source="a")], [refused], spec)
    assert manifest.committed([name])
    digest = manifest.finish()
    assert manifest.finish() == digest, "finishing twice changes nothing"
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
    manifest = merge(tmp_path, [plan("a", [0, 1, 2]), plan("bad", [])])
    first, second = f"{BUCKET.name}/shard-000000", f"{BUCKET.name}/shard-000001"
    lost = manifest.clips(0)[2]
    refused = Reject("a", "encode", "time_out", "slow", lost.begin, lost.end, key=lost.key)
    write_shard(tmp_path, first, [Encoded(c, b"1") for c in manifest.clips(0)[:2]], [refused], spec)
    manifest.finish()
    before = (tmp_path / f"{first}.parquet").read_bytes()

    videos, clips = manifest.quarantined()
    assert videos == {"bad"} and [c.key for c in clips] == [lost.key]
    manifest.begin_generation([SourceVideo("bad")], clips)
    write_json(manifest.part(0), [plan("bad", [7]).plain()])
    manifest.merge(PipelineConfig(clips_per_shard=3, min_free_gb=0), 1)
    assert [c.key for c in manifest.clips(1)] == [plan("bad", [7]).clips[0].key, lost.key] and manifest.groups() == 2
    write_shard(tmp_path, second, [Encoded(c, b"2") for c in manifest.clips(1)], [], spec)
    manifest.finish()
    assert manifest.rejects() == [], "what was tried again with success is no longer refused"
    assert (tmp_path / f"{first}.parquet").read_bytes() == before
    assert manifest.quarantined() == (set(), [])


def test_a_plan_that_an_older_version_began_is_read() -> None:
    new = VideoPlan("a.mp4", "d", (), (Reject("a.mp4", "probe", "unreadable", "x"),), (b"print",))
    old = new.plain()
    old["grey"] = old.pop("prints")[0]
    assert VideoPlan.parse(old) == new
    assert VideoPlan.parse({**old, "grey": ""}).prints == ()
