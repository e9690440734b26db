from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cluster.runtime.atomic_files import DiskFull, write_json
from cluster.tables import table_writer
from pipeline.books import merge as module
from pipeline.books import settle
from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import PipelineConfig
from pipeline.records import Reject, SourceVideo, VideoPlan
from pipeline.shards.manifest import Manifest
from tests.helpers.plain_merge import Books
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
    assert tables(tmp_path / "a") == tables(tmp_path / "b")
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

    write_list = table_writer.write_list

    def killed(folder: Path, *rest: object) -> None:
        if folder.name == "rejects":
            raise KeyboardInterrupt
        write_list(folder, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(table_writer, "write_list", killed)
        with pytest.raises(KeyboardInterrupt):
            merged(tmp_path, [plan("b", [2, 3]), plan("bad", [])])
    assert manifest.groups() == 2, "the table of clips was replaced before the kill"
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


def tables(folder: Path) -> dict[str, bytes]:
    """The bytes of all files of the books."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for name in ("clips", "rejects", ".prints")
        for path in sorted((folder / name).glob("*"))
    }


def shuffled(seed: int) -> Callable[..., Iterator[Any]]:
    """A runner whose tasks end in another order than they are given in, some of them twice, as on many machines."""
    rng = random.Random(seed)

    def run(step: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        order = list(range(len(calls))) + rng.sample(range(len(calls)), len(calls) // 2)
        rng.shuffle(order)
        done = {number: function(*calls[number]) for number in order}
        return iter([done[number] for number in range(len(calls))])

    return run


def corpus(seed: int, count: int, before: Sequence[VideoPlan] = ()) -> list[VideoPlan]:
    """Videos with 0 to 4 clips in one or two buckets, some unreadable, some copies of others of this or an earlier generation."""
    rng = random.Random(seed)
    plans: list[VideoPlan] = []
    other = BUCKET.model_copy(update={"width": 32})
    for number in range(count):
        source = f"{seed}/video-{number:04d}.mp4"
        kind = rng.random()
        if kind < 0.1:
            plans.append(VideoPlan(source, "", (), (Reject(source, "probe", "unreadable", "broken \xfc"),)))
            continue
        made = plan(source, sorted(rng.sample(range(9), rng.randint(1, 4))), digest=f"{seed:08x}{number:024x}")
        made = replace(made, clips=tuple(replace(clip, key=f"{seed}{number:027d}{clip.begin:04.0f}") for clip in made.clips))
        twins = [each for each in (*before, *plans) if each.digest]
        if kind < 0.3 and twins:
            digest = rng.choice(twins).digest
            made = replace(made, digest=digest, clips=tuple(replace(clip, source_digest=digest) for clip in made.clips))
        if rng.random() < 0.5:
            wide = tuple(two for clip in made.clips for two in (clip, replace(clip, bucket=other, key=clip.key[::-1])))
            made = replace(made, clips=wide)
        if rng.random() < 0.3:
            made = replace(made, rejects=(Reject(source, "filters", "black", "", 1.0, 2.0, {"luma": 3.5}),))
        if rng.random() < 0.1:
            made = replace(made, clips=(), rejects=(Reject(source, "filters", "black", "", 1.0, 2.0),))
        plans.append(made)
    return plans


def add(folder: Path, plans: Sequence[VideoPlan], config: PipelineConfig, run: Callable[..., Iterator[Any]]) -> Manifest:
    """Merge a generation, its parts as tasks write them."""
    manifest, size = Manifest(folder), config.videos_per_task
    generation = manifest.begin_generation([SourceVideo(each.source) for each in plans])
    count = -(-len(plans) // size)
    for number in range(count):
        write_part(manifest.part(number), plans[number * size : (number + 1) * size])
    merge(manifest, generation, config, count, run)
    return manifest


@pytest.mark.parametrize("dedup", [True, False])
def test_the_merge_is_that_of_one_loop_whoever_runs_its_tasks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dedup: bool
) -> None:
    """Three generations with copies among them, the third of which tries refused videos again; many blocks, partitions and files."""
    monkeypatch.setattr(module, "BLOCK_VIDEOS", 16)
    monkeypatch.setattr(module, "REJECT_ROWS", 7)
    monkeypatch.setattr("pipeline.books.exact_copies.PARTITION_ROWS", 32)
    monkeypatch.setattr("pipeline.books.shard_groups.FILE_ROWS", 40)
    first = corpus(1, 80)
    second = corpus(2, 50, first)
    third = [plan(each.source, [3, 5]) for each in first if not each.digest] + corpus(3, 20, [*first, *second])
    fields: dict[str, Any] = {"clips_per_shard": 5, "min_free_gb": 0, "dedup": dedup}
    plain = Books(PipelineConfig(**fields))
    for generation in (first, second, third):
        plain.merge(generation)
    assert sum(r.reason == "exact_copy" for r in plain.rejects) >= 15 * dedup and len(set(plain.keys())) > 150
    made = {}
    for seed, size in ((0, 4), (1, 16), (2, 7)):
        folder = tmp_path / str(seed)
        for generation in (first, second, third):
            manifest = add(folder, generation, PipelineConfig(videos_per_task=size, **fields), shuffled(seed))
        assert [manifest.clips(group) for group in range(manifest.groups())] == plain.groups
        assert manifest.rejects() == plain.rejects
        made[seed] = tables(folder)
    assert made[0] == made[1] == made[2] and sum(name.startswith("clips/0001") for name in made[0]) > 3


def test_a_shard_ends_by_its_bytes_too(tmp_path: Path) -> None:
    from tests.helpers.fakes import FakeCodec

    tmp_path.mkdir(exist_ok=True)
    write_json(tmp_path / "dataset.json", {"spec": replace(FakeCodec.spec, bits=1 << 20).plain()})
    manifest = Manifest(tmp_path)
    plans = [plan(f"{number}", [0, 1, 2]) for number in range(4)]
    generation = manifest.begin_generation([SourceVideo(each.source) for each in plans])
    write_part(manifest.part(0), plans)
    config = PipelineConfig(buckets=(BUCKET,), clips_per_shard=100, shard_mb=10, min_free_gb=0)
    merge(manifest, generation, config, 1)
    assert [len(manifest.clips(group)) for group in range(manifest.groups())] == [8, 4], "1.3 MB a clip"


def test_a_disk_that_fills_in_a_merge_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    merged(tmp_path, [plan("a", [0, 1])])
    before = tables(tmp_path)

    def full(*_: object) -> None:
        raise DiskFull("the disk is full; free some space and run again")

    with monkeypatch.context() as patch:
        patch.setattr(settle, "_write_clips", full)
        with pytest.raises(DiskFull, match="free some space"):
            merged(tmp_path, [plan("b", [2, 3]), plan("bad", [])])
    assert tables(tmp_path) == before
    manifest = Manifest(tmp_path)
    generation = manifest.generation()
    assert generation is not None and manifest.part(0).exists()
    merge(manifest, generation, PipelineConfig(clips_per_shard=3, min_free_gb=0), 1)
    assert manifest.groups() == 2 and manifest.known() == {"a", "b", "bad"}


def test_a_damaged_part_is_one_line_with_the_mend(tmp_path: Path) -> None:
    manifest = Manifest(tmp_path)
    generation = manifest.begin_generation([SourceVideo("a")])
    manifest.part(0).write_bytes(b"no rows")
    with pytest.raises(ValueError, match=r"part-000000\.arrow: damaged .* remove it and run again"):
        merge(manifest, generation, PipelineConfig(min_free_gb=0), 1)
    assert manifest.generation() == generation
