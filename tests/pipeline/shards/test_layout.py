from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.shards import layout
from pipeline.shards.layout import DatasetError, FolderError, FolderLock, Locked
from tests.helpers.fakes import clip


def test_the_second_job_learns_who_holds_the_folder(tmp_path: Path) -> None:
    with FolderLock(tmp_path), pytest.raises(Locked, match=f"process {os.getpid()} on .*, since 2"), FolderLock(tmp_path):
        pass
    with FolderLock(tmp_path):
        assert str(os.getpid()) in (tmp_path / ".lock").read_text()


def test_a_killed_holder_lets_go(tmp_path: Path) -> None:
    code = (
        "from pathlib import Path; from pipeline.shards.layout import FolderLock\n"
        f"with FolderLock(Path({str(tmp_path)!r})): print(1, flush=True); input()"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None and holder.stdout.readline()
        with pytest.raises(Locked, match=f"process {holder.pid}"), FolderLock(tmp_path):
            pass
        holder.kill()
    with FolderLock(tmp_path):
        pass


def test_a_folder_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FolderError, match=r"choose another pipeline\.output"), FolderLock(tmp_path / "file" / "shards"):
        pass


def test_leftovers_of_killed_writers_go(tmp_path: Path) -> None:
    for name in (
        ".index.parquet.host-1.tmp",
        "f005x32x32/.shard-000000.tar.host-1.tmp",
        ".plan/.part.host-1.tmp",
        "f005x32x32/keep.tar",
    ):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    layout.remove_leftovers(tmp_path)
    assert [str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*") if p.is_file()] == ["f005x32x32/keep.tar"]


def test_sources_that_were_taken_down(tmp_path: Path) -> None:
    assert layout.excluded(tmp_path) == []
    (tmp_path / "excluded.json").write_text('["b/", "a.mp4"]')
    gone = layout.excluded(tmp_path)
    assert gone == ["a.mp4", "b/"]
    assert [layout.hidden(name, gone) for name in ("a.mp4", "a.mp4x", "b/c.mp4", "b")] == [True, False, True, False]
    reject = layout.taken_down(clip(3))
    assert (reject.stage, reject.reason, reject.key) == ("exclude", "taken_down", clip(3).key)
    for broken in ("{", "3"):
        (tmp_path / "excluded.json").write_text(broken)
        with pytest.raises(DatasetError, match=r"excluded\.json: not a JSON list of sources"):
            layout.excluded(tmp_path)
