"""A listing of a store that is killed midway goes on: only what is left is asked for, and the list is the same, byte for byte."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fsspec.implementations.local import LocalFileSystem

from cluster.config import load
from cluster.runtime.atomic_files import read_json, write_json
from pipeline.corpus import bucket_listing, spilled_names
from pipeline.corpus.listing import CorpusError
from pipeline.job import generations
from pipeline.shards.manifest import Manifest

FOLDERS = 12
DIE = """
import os, signal, sys
from pathlib import Path
from cluster.config import load
from pipeline.job import generations
from pipeline.shards.manifest import Manifest
from tests.pipeline.corpus.test_spilled_names import counted

def ask(left=[int(sys.argv[3])]):
    if not left[0]:
        os.kill(os.getpid(), signal.SIGKILL)
    left[0] -= 1

counted(ask)
generations.begin(load(Path(sys.argv[1])), Manifest(Path(sys.argv[2])), retry=False)
"""
"""Lists a corpus and is killed at a given request."""


def counted(ask: Callable[[], None]) -> None:
    """Have `ask` called before each request of a store that is this machine's disk; one request at a time."""
    bucket_listing.CONNECTIONS, bucket_listing.ENOUGH = 1, 4
    listed = LocalFileSystem.ls

    def ls(self: Any, path: str, detail: bool = False) -> Any:
        ask()
        return listed(self, path, detail=detail)

    def find(self: Any, path: str) -> list[str]:
        ask()
        return [str(each) for each in Path(path).rglob("*") if each.is_file()]

    LocalFileSystem.ls, LocalFileSystem.find = ls, find  # type: ignore[method-assign, assignment]


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The requests of this process, one by one."""
    for owner, names in ((bucket_listing, ("CONNECTIONS", "ENOUGH")), (LocalFileSystem, ("ls", "find"))):
        for name in names:
            monkeypatch.setattr(owner, name, getattr(owner, name))  # so that monkeypatch puts back what was there
    asked: list[int] = []
    counted(lambda: asked.append(1))
    return asked


@pytest.fixture
def config(tmp_path: Path) -> Path:
    names = [f"{folder:02d}/{inner}/{name}.mp4" for folder in range(FOLDERS) for inner in "ab" for name in range(3)]
    for name in (*names, "00.mp4", "00-a.mp4", "00/a.mp4"):
        path = tmp_path / "store" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    path = tmp_path / "c.yaml"
    path.write_text(f"corpus: {{videos: ['file://{tmp_path}/store']}}\n")
    return path


def begin(config: Path, folder: Path) -> bytes:
    """Begin a generation and return the bytes of its list."""
    folder.mkdir(exist_ok=True)
    assert generations.begin(load(config), Manifest(folder), retry=False) is not None
    return b"".join(path.read_bytes() for path in sorted((folder / ".plan" / "videos").iterdir()))


def killed(config: Path, folder: Path, at: int) -> None:
    folder.mkdir()
    command = [sys.executable, "-c", DIE, str(config), str(folder), str(at)]
    assert subprocess.run(command, check=False, capture_output=True, timeout=60).returncode == -signal.SIGKILL


@pytest.mark.parametrize("at", [1, FOLDERS - 4])
def test_a_killed_listing_asks_only_for_what_is_left(
    config: Path, tmp_path: Path, requests: list[int], at: int, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = begin(config, tmp_path / "whole")
    assert len(requests) == 1 + FOLDERS and "goes on" not in capsys.readouterr().out
    killed(config, tmp_path / "killed", at)
    requests.clear()
    assert begin(config, tmp_path / "killed") == whole
    assert len(requests) == 1 + FOLDERS - at, "each request that was answered before the kill is not made again"
    assert f"goes on, {at} folders or parts of them are listed" in capsys.readouterr().out
    assert not (tmp_path / "killed" / ".plan" / "listing").exists()
    requests.clear()
    assert begin(config, tmp_path / "killed") == whole and len(requests) == 1 + FOLDERS, "the next start lists anew"


def test_what_is_left_of_another_corpus_or_of_yesterday_is_not_used(config: Path, tmp_path: Path, requests: list[int]) -> None:
    killed(config, tmp_path / "old", 6)
    record = tmp_path / "old" / ".plan" / "listing" / spilled_names.RECORD
    write_json(record, {**read_json(record), "began": time.time() - spilled_names.AGE - 1})
    begin(config, tmp_path / "old")
    assert len(requests) == 1 + FOLDERS
    killed(config, tmp_path / "other", 6)
    config.write_text(f"corpus: {{videos: ['file://{tmp_path}/store'], extensions: [.mp4, .mkv]}}\n")
    requests.clear()
    begin(config, tmp_path / "other")
    assert len(requests) == 1 + FOLDERS


def test_a_lost_store_ends_a_listing_that_goes_on_and_a_damaged_file_is_listed_anew(
    config: Path, tmp_path: Path, requests: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = LocalFileSystem.find

    def lost(self: Any, path: str) -> list[str]:
        if path.endswith("/07"):
            raise PermissionError(path)
        return real(self, path)

    with monkeypatch.context() as patched:
        patched.setattr(LocalFileSystem, "find", lost)
        with pytest.raises(CorpusError, match=r"cannot list file://.*07"):
            begin(config, tmp_path / "lost")
    kept = sorted((tmp_path / "lost" / ".plan" / "listing").glob("*.parquet"))
    assert len(kept) == len(requests) > 3
    kept[0].write_bytes(kept[0].read_bytes()[:-20])
    requests.clear()
    lists = begin(config, tmp_path / "lost"), begin(config, tmp_path / "whole")
    assert lists[0] == lists[1] and len(requests) == 1 + FOLDERS - len(kept) + 1 + 1 + FOLDERS


def test_a_corpus_without_videos_is_listed_anew(config: Path, tmp_path: Path) -> None:
    config.write_text(f"corpus: {{videos: ['file://{tmp_path}/store'], extensions: [.webm]}}\n")
    for _ in range(2):
        with pytest.raises(CorpusError, match="holds no video"):
            begin(config, tmp_path / "none")
        assert not (tmp_path / "none" / ".plan" / "listing").exists()
        # What is added is found.
    (tmp_path / "store" / "00" / "v.webm").write_bytes(b"x")
    begin(config, tmp_path / "none")
