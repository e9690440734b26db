"""Repair without Ray: damaged shards are discarded only while their videos are what they were, and come back with the same bytes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from cluster.runtime.atomic_files import write_json
from pipeline.books.index import finish
from pipeline.job.repair import check_repaired, discard_damaged
from pipeline.shards.manifest import Manifest
from pipeline.workers.errors import JobError
from tests.helpers.encoding import BUCKETS, config, encode_all, planned
from tests.helpers.fakes import FakeCodec


@pytest.fixture
def video(clips: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(clips / "carphone_distorted.mp4", tmp_path / "video.mp4"))


@pytest.fixture
def manifest(video: Path, tmp_path: Path) -> Manifest:
    """A finished folder of one video."""
    settings = config(tmp_path)
    folder = planned(tmp_path / "shards", [video], settings)
    plain = {"format": 1, "spec": FakeCodec.spec.plain(), "fps": settings.fps, "buckets": [b.name for b in BUCKETS]}
    write_json(folder / "dataset.json", {**plain, "features": False})
    encode_all(folder, settings)
    found = Manifest(folder)
    finish(found)
    return found


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.glob("*/shard-*"))}


def test_a_damaged_shard_is_discarded_and_encoded_again_to_the_same_bytes(
    manifest: Manifest, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert discard_damaged(manifest) == {}
    before = contents(manifest.folder)
    name = next(name for name in before if name.endswith(".tar")).removesuffix(".tar")
    (manifest.folder / f"{name}.tar").write_bytes(before[f"{name}.tar"][:-1] + b"?")
    damaged = discard_damaged(manifest)
    assert list(damaged) == [name] and len(damaged[name]) == 64
    assert capsys.readouterr().out == f"repair: {name} is encoded again\n"
    left = contents(manifest.folder)
    assert set(before) - set(left) == {f"{name}.tar", f"{name}.parquet"}
    encode_all(manifest.folder, config(tmp_path))
    assert contents(manifest.folder) == before
    check_repaired(manifest, damaged)
    with pytest.raises(JobError, match=f"{name}: repaired with other bytes than before"):
        check_repaired(manifest, {name: "0" * 64})


@pytest.mark.parametrize("changed", [True, False])
def test_nothing_is_discarded_when_the_video_has_changed_or_is_gone(manifest: Manifest, video: Path, changed: bool) -> None:
    tar = next(manifest.folder.glob("*/*.tar"))
    tar.write_bytes(tar.read_bytes()[:-1] + b"?")
    before = contents(manifest.folder)
    if changed:
        video.write_bytes(video.read_bytes() + b"?")
    else:
        video.unlink()
    mend = "has changed; bring the old file back" if changed else "bring the video back, or exclude it"
    with pytest.raises(JobError, match=f"is damaged and cannot be repaired: .*video.mp4.*{mend}"):
        discard_damaged(manifest)
    assert contents(manifest.folder) == before


def test_a_folder_without_a_plan_has_nothing_to_repair(tmp_path: Path) -> None:
    assert discard_damaged(Manifest(tmp_path)) == {}
