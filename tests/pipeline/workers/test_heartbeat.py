from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from pipeline.workers.heartbeat import HeartbeatFile, StallDetector


def test_a_part_is_stalled_when_its_file_does_not_change(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [100.0]
    monkeypatch.setattr("pipeline.workers.heartbeat.time.monotonic", lambda: clock[0])
    path = tmp_path / "part-000000.at"
    path.write_text("7 7\n")
    detector = StallDetector(10)
    detector.reset(path)
    assert not path.exists() and not detector.stalled(path, 1e9), "a task that waits for a CPU has not started"
    heartbeat = HeartbeatFile(path)
    heartbeat.at(0)
    assert not detector.stalled(path, 0) and not detector.stalled(path, 10) and detector.stalled(path, 10.1)
    heartbeat.beat()
    assert detector.stalled(path, 11), "at most one write per second"
    clock[0] += 1.5
    heartbeat.beat()
    assert not detector.stalled(path, 20) and detector.position(path) == 0
    heartbeat.at(3)
    assert not detector.stalled(path, 29) and detector.position(path) == 3
    assert detector.stalled(path, 40)
    detector.reset(path)
    assert detector.position(path) is None and not detector.stalled(path, 50)


def test_a_full_disk_is_reported_by_the_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        HeartbeatFile(tmp_path / "a.at").at(0)
    with pytest.raises(FileNotFoundError):
        HeartbeatFile(tmp_path / "gone" / "a.at").at(0)
