from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.books.index import finish
from pipeline.maintenance import recaption
from pipeline.maintenance.verify import verify
from pipeline.records import Clip, SourceVideo
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.manifest import Manifest
from tests.helpers.plans import BUCKET, SHARDS, finished


def captions(folder: Path) -> dict[str, str]:
    dataset = ShardDataset.open(folder)
    return {sample.meta["source"]: sample.caption for n in range(len(dataset)) for sample in [dataset.read(BUCKET, n)]}


def test_new_captions_reach_plan_and_shards_and_no_bit_changes(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    manifest = Manifest(folder)
    dataset = ShardDataset.open(folder)
    bits = {dataset.read(BUCKET, n).key: dataset.read(BUCKET, n).bits for n in range(len(dataset))}
    before = (folder / f"{SHARDS[0]}.tar").read_bytes()
    assert recaption.changed(manifest, [SourceVideo("v/a"), SourceVideo("v/b"), SourceVideo("x", "new")], remote=True) == {}
    found = recaption.changed(manifest, [SourceVideo("v/a"), SourceVideo("v/b", "a bee")], remote=False)
    assert found == {"v/b": "a bee"}
    rewritten = recaption.recaption(manifest, found)
    assert 0 < rewritten < len(SHARDS) and (folder / f"{SHARDS[0]}.tar").read_bytes() == before, "shards without it stay"
    digest = finish(manifest)
    assert captions(folder) == {"v/a": "", "v/b": "a bee"} and ShardDataset.open(folder).digest == digest
    assert not verify(folder).damaged
    dataset = ShardDataset.open(folder)
    assert bits == {dataset.read(BUCKET, n).key: dataset.read(BUCKET, n).bits for n in range(len(dataset))}
    assert recaption.changed(manifest, [SourceVideo("v/b", "a bee")], remote=True) == {}
    assert recaption.recaption(manifest, {}) == 0


def test_a_run_that_was_killed_is_finished_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = finished(tmp_path)
    manifest = Manifest(folder)
    done: list[str] = []
    rewrite = recaption._rewritten

    def killed(manifest: Manifest, name: str, *rest: object) -> bool:
        if done:
            raise KeyboardInterrupt
        done.append(name)
        return rewrite(manifest, name, *rest)  # type: ignore[arg-type]

    assert not recaption.begun(manifest)
    with monkeypatch.context() as patch:
        patch.setattr(recaption, "_rewritten", killed)
        with pytest.raises(KeyboardInterrupt):
            recaption.recaption(manifest, {"v/a": "one", "v/b": "two"})
    assert recaption.begun(manifest)
    assert recaption.recaption(manifest, {}) == len(SHARDS) - 1 and not recaption.begun(manifest)
    finish(manifest)
    assert captions(folder) == {"v/a": "one", "v/b": "two"}


def test_a_models_caption_gives_way_to_one_of_the_tables_only(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    manifest = Manifest(folder)

    def by_model(clip: Clip) -> Clip:
        return replace(clip, caption="a model's", extra={**clip.extra, recaption.MODEL: "1a2b"})

    manifest.rewrite_clips(by_model)
    assert recaption.changed(manifest, [SourceVideo("v/a"), SourceVideo("v/b", "own")], remote=True) == {"v/b": "own"}
    recaption.recaption(manifest, {"v/b": "own"})
    extras = {
        clip.source: (clip.caption, recaption.MODEL in clip.extra)
        for n in range(manifest.groups())
        for clip in manifest.clips(n)
    }
    assert extras == {"v/a": ("a model's", True), "v/b": ("own", False)}


def test_the_file_beside_a_video_comes_first(tmp_path: Path) -> None:
    folder = finished(tmp_path)
    manifest = Manifest(folder)
    video = tmp_path / "m.mp4"
    manifest.rewrite_clips(lambda clip: replace(clip, source=str(video) if clip.source == "v/a" else clip.source))
    (tmp_path / "m.txt").write_text("beside\n")
    assert recaption.changed(manifest, [SourceVideo(str(video), "table")], remote=False) == {str(video): "beside"}
    (tmp_path / "m.txt").write_bytes(b"caf\xe9")
    assert recaption.changed(manifest, [SourceVideo(str(video), "table")], remote=False) == {}, "the old one stays, with a word"
