"""A file or folder appears whole or not at all, and a full disk loses nothing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from cluster.runtime import atomic_files
from cluster.runtime.atomic_files import DamagedFile, DiskFull


def test_a_file_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "file"
    with pytest.raises(RuntimeError, match="midway"), atomic_files.committing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError("midway")
    assert not path.exists() and not list(path.parent.iterdir())
    with atomic_files.committing(path) as temporary:
        temporary.write_text("whole")
        assert not path.exists()
    assert path.read_text() == "whole" and list(path.parent.iterdir()) == [path]


def test_disk_full_keeps_what_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("before")
    with (
        pytest.raises(DiskFull, match="the disk is full; free some space and run again"),
        atomic_files.committing(path) as temporary,
    ):
        temporary.write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert path.read_text() == "before" and list(tmp_path.iterdir()) == [path]
    with (
        pytest.raises(DiskFull, match=r"pipeline\.min_free_gb is 1e\+09"),
        atomic_files.committing(path, 1e9, setting="pipeline.min_free_gb"),
    ):
        pass


def test_json_reads_back_and_damage_is_named(tmp_path: Path) -> None:
    path = tmp_path / "value.json"
    atomic_files.write_json(path, {"b": [1, None], "a": "x"})
    assert atomic_files.read_json(path) == {"a": "x", "b": [1, None]}
    assert path.read_text().index('"a"') < path.read_text().index('"b"')
    for content in (b"{", b"\xff\xfe"):
        path.write_bytes(content)
        with pytest.raises(DamagedFile, match=r"value\.json: not valid JSON \(.+\); restore it"):
            atomic_files.read_json(path)
    with pytest.raises(FileNotFoundError):
        atomic_files.read_json(tmp_path / "absent.json")


def test_a_folder_replaces_another_as_a_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    for content in ("first", "second"):
        fresh = tmp_path / "fresh"
        fresh.mkdir()
        (fresh / content).touch()
        atomic_files.replace_folder(fresh, folder)
        assert [path.name for path in folder.iterdir()] == [content] and list(tmp_path.iterdir()) == [folder]
