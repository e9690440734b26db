from __future__ import annotations

from pathlib import Path

import fsspec
import pytest

from cluster.runtime import remote_files


def test_throttling_is_tried_again_and_absence_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_PAUSE", 0.0)
    calls = []

    def flaky() -> str:
        calls.append(1)
        if len(calls) < 4:
            raise OSError("SlowDown")
        return "ok"

    assert remote_files.retried(flaky) == "ok" and len(calls) == 4

    def absent() -> str:
        calls.append(1)
        raise FileNotFoundError

    with pytest.raises(FileNotFoundError):
        remote_files.retried(absent)
    assert len(calls) == 5


def test_a_file_that_arrives_in_part_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/remote/a.bin", b"123456")
    try:
        remote_files.download(memory, "/remote/a.bin", tmp_path / "a.bin")
        assert (tmp_path / "a.bin").read_bytes() == b"123456"
        monkeypatch.setattr(type(memory), "get_file", lambda self, source, target: Path(target).write_bytes(b"123"))
        with pytest.raises(remote_files.BrokenTransfer, match="after 3 of 6 bytes"):
            remote_files.download(memory, "/remote/a.bin", tmp_path / "a.bin")
    finally:
        memory.rm("/remote", recursive=True)


def test_urls_are_told_from_paths() -> None:
    assert remote_files.is_url("s3://bucket/a.mp4") and not remote_files.is_url("/data/a.mp4")
