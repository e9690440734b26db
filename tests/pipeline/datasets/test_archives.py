"""UCF-101 and Kinetics from archives in their official form, whole and damaged."""

from __future__ import annotations

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from pipeline.corpus.caption_table import CaptionTable
from pipeline.datasets import archives
from pipeline.datasets.clip_folder import DataSetError

NAMES = ("v_ApplyEyeMakeup_g08_c01.avi", "v_ApplyEyeMakeup_g01_c01.avi", "v_YoYo_g09_c02.avi")


@pytest.fixture
def ucf(tmp_path: Path) -> tuple[Path, Path]:
    """An archive of three videos, and the lists of split 1."""
    for name in NAMES:
        path = tmp_path / "UCF-101" / name.split("_")[1] / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode() * 10)
    with tarfile.open(tmp_path / "UCF101.tar", "w") as tar:
        tar.add(tmp_path / "UCF-101", "UCF-101")
    with zipfile.ZipFile(tmp_path / "lists.zip", "w") as lists:
        lists.writestr("ucfTrainTestlist/trainlist01.txt", f"ApplyEyeMakeup/{NAMES[0]} 1\r\nYoYo/{NAMES[2]} 101\r\n")
        lists.writestr("ucfTrainTestlist/testlist01.txt", f"ApplyEyeMakeup/{NAMES[1]}\r\n")
    return tmp_path / "UCF101.tar", tmp_path / "lists.zip"


def test_ucf101(ucf: tuple[Path, Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    digest = archives.ucf101(out, *ucf, split=1)
    assert sorted(path.name for path in (out / "train").iterdir()) == [NAMES[0], NAMES[2]]
    assert (out / "test" / NAMES[1]).read_bytes() == NAMES[1].encode() * 10
    table = CaptionTable.read(out / "captions.csv")
    assert table.look_up(str(out / "train" / NAMES[0]))[0] == "a video of apply eye makeup"
    assert table.look_up(str(out / "train" / NAMES[2]))[0] == "a video of yo yo"
    assert json.loads((out / "dataset.json").read_text())["digest"] == digest
    ucf[0].write_bytes(b"gone")  # what was unpacked whole is not unpacked again
    assert archives.ucf101(out, *ucf, split=1) == digest
    with pytest.raises(DataSetError, match="holds another data set"):
        archives.ucf101(out, *ucf, split=2)
    assert archives.ucf101(tmp_path / "of-folder", tmp_path / "UCF-101", ucf[1], split=1) == digest


def test_ucf101_that_is_missing_or_damaged(ucf: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataSetError, match=r"nowhere\.rar: no such archive"):
        archives.ucf101(tmp_path / "a", tmp_path / "nowhere.rar", ucf[1], 1)
    with pytest.raises(DataSetError, match=r"no trainlist02\.txt there"):
        archives.ucf101(tmp_path / "b", *ucf, 2)
    whole = ucf[0].read_bytes()
    ucf[0].write_bytes(whole[: len(whole) // 3])
    with pytest.raises(DataSetError, match=r"UCF101\.tar: damaged archive"):
        archives.ucf101(tmp_path / "c", *ucf, 1)
    (tmp_path / "UCF-101" / "YoYo" / NAMES[2]).unlink()
    with pytest.raises(DataSetError, match=f"1 of 3 listed videos are missing, such as {NAMES[2]}"):
        archives.ucf101(tmp_path / "d", tmp_path / "UCF-101", ucf[1], 1)
    (tmp_path / "UCF101.rar").write_bytes(b"Rar!")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(DataSetError, match="no program here unpacks rar; install libarchive-tools"):
        archives.ucf101(tmp_path / "e", tmp_path / "UCF101.rar", ucf[1], 1)


def test_kinetics(tmp_path: Path) -> None:
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / "abc_000004_000014.mp4").write_bytes(b"one")
    with tarfile.open(tmp_path / "part_0.tar.gz", "w:gz") as tar:
        tar.add(tmp_path / "videos" / "abc_000004_000014.mp4", "abc_000004_000014.mp4")
    (tmp_path / "train.csv").write_text(
        'label,youtube_id,time_start,time_end,split\n"flipping pancake",abc,4,14,train\nyoga,gone,0,10,train\n'
    )
    out = tmp_path / "out"
    archives.kinetics(out, [tmp_path / "part_0.tar.gz"], tmp_path / "train.csv", "train")
    assert CaptionTable.read(out / "captions.csv").look_up("train/abc_000004_000014.mp4")[0] == "a video of flipping pancake"
    assert (out / "train" / "abc_000004_000014.mp4").read_bytes() == b"one"
    (tmp_path / "other.csv").write_text("label,youtube_id,time_start,time_end,split\nyoga,gone,0,10,train\n")
    with pytest.raises(DataSetError, match="none of its 1 videos is in the archives"):
        archives.kinetics(tmp_path / "x", [tmp_path / "part_0.tar.gz"], tmp_path / "other.csv", "train")
    with pytest.raises(DataSetError, match="not the annotations of Kinetics"):
        archives.kinetics(tmp_path / "y", [tmp_path / "part_0.tar.gz"], tmp_path / "part_0.tar.gz", "train")
