from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.config import PipelineConfig
from pipeline.planning.merge import merge
from pipeline.shards.manifest import Manifest
from tests.helpers.plans import BUCKET, merged, plan


def test_groups_are_fixed_lists_of_clips(tmp_path: Path) -> None:
    manifest = merged(tmp_path, [plan("a", [0, 1]), plan("bad", []), plan("c", [2, 3, 4]), plan("d", [5, 6])])
    assert [[c.begin for c in manifest.clips(g)] for g in range(manifest.groups())] == [[0, 1, 2], [3, 4, 5], [6]]
    assert [names for _, names, _ in manifest.shards()] == [(f"{BUCKET.name}/shard-00000{i}",) for i in range(3)]
    assert [r.source for r in manifest.rejects()] == ["bad"] and manifest.known() == {"a", "bad", "c", "d"}
    assert manifest.generation() is None


def test_the_plan_does_not_depend_on_the_parts(tmp_path: Path) -> None:
    plans = [plan(name, [i, 10 + i]) for i, name in enumerate("abcdefg")]
    first, second = merged(tmp_path / "a", plans, size=1), merged(tmp_path / "b", plans, size=5)
    assert (tmp_path / "a" / "clips.parquet").read_bytes() == (tmp_path / "b" / "clips.parquet").read_bytes()
    assert first.groups() == second.groups() == 5


def test_a_second_generation_appends_and_leaves_the_first_alone(tmp_path: Path) -> None:
    manifest = merged(tmp_path, [plan("a", [0, 1]), plan("bad", [])])
    before = manifest.clips(0)
    merged(tmp_path, [plan("c", [2, 3, 4, 5])])
    assert manifest.clips(0) == before and [c.begin for c in manifest.clips(1)] == [2, 3, 4]
    assert manifest.groups() == 3 and manifest.known() == {"a", "bad", "c"}
    copy = plan("late", [7], digest=plan("a", [0]).digest)
    merged(tmp_path, [copy])
    assert manifest.groups() == 3 and manifest.rejects()[-1].reason == "exact_copy", "copies are found across generations"


def test_merging_again_after_a_kill_gives_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged(tmp_path, [plan("a", [0, 1])])
    manifest = Manifest(tmp_path)

    def killed(rejects: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write_rejects", lambda self, rejects: killed(rejects))
        with pytest.raises(KeyboardInterrupt):
            merged(tmp_path, [plan("b", [2, 3]), plan("bad", [])])
    assert manifest.groups() == 2, "clips.parquet was replaced before the kill"
    generation = manifest.generation()
    assert generation is not None and [video.source for video in generation.videos] == ["b", "bad"]
    merge(manifest, generation, PipelineConfig(clips_per_shard=3, min_free_gb=0), 1)
    assert manifest.groups() == 2 and len(manifest.rejects()) == 1 and manifest.generation() is None


def test_copies_are_refused_or_get_keys_of_their_own(tmp_path: Path) -> None:
    twins = [plan("a", [0]), plan("b", [0], digest=plan("a", [0]).digest), plan("c", [0], digest=plan("a", [0]).digest)]
    manifest = merged(tmp_path / "refuse", twins)
    assert len(manifest.clips(0)) == 1
    assert [(r.source, r.stage, r.reason, r.detail) for r in manifest.rejects()] == [
        (name, "dedup", "exact_copy", "same bytes as a") for name in "bc"
    ]
    manifest = merged(tmp_path / "keep", twins, dedup=False)
    assert len({c.key for c in manifest.clips(0)}) == 3
