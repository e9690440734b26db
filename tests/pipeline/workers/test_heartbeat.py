from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.workers.heartbeat import Sign, Watch


def test_a_part_stands_still_when_its_file_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("pipeline.workers.heartbeat.time.monotonic", lambda: clock[0])
    path = tmp_path / "part-000000.at"
    path.write_text("7 7\n")
    watch = Watch(10)
    watch.begin(path)
    assert not path.exists() and not watch.stands_still(path, 1e9), "a task that waits for a CPU has not begun"
    sign = Sign(path)
    sign.at(0)
    assert not watch.stands_still(path, 0) and not watch.stands_still(path, 10) and watch.stands_still(path, 10.1)
    sign.beat()
    assert watch.stands_still(path, 11), "at most one writing a second"
    clock[0] += 1.5
    sign.beat()
    assert not watch.stands_still(path, 20) and watch.position(path) == 0
    sign.at(3)
    assert not watch.stands_still(path, 29) and watch.position(path) == 3
    assert watch.stands_still(path, 40)
    watch.begin(path)
    assert watch.position(path) is None and not watch.stands_still(path, 50)


def test_a_full_disk_is_for_the_commit_to_say(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        Sign(tmp_path / "a.at").at(0)
    with pytest.raises(FileNotFoundError):
        Sign(tmp_path / "gone" / "a.at").at(0)
