from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

from cluster.metrics import heartbeat
from cluster.metrics.heartbeat import Heartbeat


def until(done: object, tries: int = 200) -> None:
    """Wait until a condition holds."""
    pause = threading.Event()
    for _ in range(tries):
        if callable(done) and done():
            return
        pause.wait(0.05)
    raise AssertionError("it did not happen")


def test_a_rank_says_what_it_is_at(tmp_path: Path) -> None:
    assert heartbeat.read(tmp_path) == {}
    with Heartbeat(tmp_path, 3, every=0.01) as beat:
        until(lambda: 3 in heartbeat.read(tmp_path))
        first = heartbeat.read(tmp_path)[3]
        assert (first.step, first.phase, first.pid) == (0, "start", os.getpid()) and first.host
        beat.took({"total": 2.0, "data": 0.5}, {"resident": 7, "device": 9})
        beat.at(12, "validation")
        until(lambda: heartbeat.read(tmp_path)[3].step == 12)
        now = heartbeat.read(tmp_path)[3]
        assert (now.phase, now.step_seconds, now.data_seconds, now.resident, now.device) == ("validation", 2.0, 0.5, 7, 9)
        until(lambda: heartbeat.read(tmp_path)[3].time > first.time)
    assert heartbeat.path_of(tmp_path, 3).stat().st_size == 512, "rewritten in place"
    heartbeat.path_of(tmp_path, 4).write_text("half")
    assert list(heartbeat.read(tmp_path)) == [3]
    heartbeat.clear(tmp_path)
    assert heartbeat.read(tmp_path) == {}


def test_a_rank_that_is_asked_writes_its_stacks(tmp_path: Path) -> None:
    heartbeat.ask_for_stacks(tmp_path)  # by an earlier watcher: not answered again
    stacks = heartbeat.stacks_of(tmp_path, 0)
    with Heartbeat(tmp_path, 0, every=0.01) as beat:
        beat.at(5, "step")
        until(lambda: heartbeat.read(tmp_path).get(0) is not None and heartbeat.read(tmp_path)[0].step == 5)
        assert not stacks.exists()
        heartbeat.ask_for_stacks(tmp_path)
        until(lambda: stacks.exists() and stacks.read_text().endswith("\n\n"))
    said = stacks.read_text()
    assert "rank 0, step 5, step" in said and "test_a_rank_that_is_asked_writes_its_stacks" in said, "the main thread's frames"


def test_that_a_rank_has_started_is_told_at_once(tmp_path: Path) -> None:
    with Heartbeat(tmp_path, 0, every=3600.0) as beat:
        until(lambda: 0 in heartbeat.read(tmp_path))
        beat.at(1, "warm-up")
        until(lambda: heartbeat.read(tmp_path)[0].phase == "warm-up")


def test_a_full_disk_or_a_missing_folder_does_not_reach_the_rank(tmp_path: Path) -> None:
    (tmp_path / "heartbeats").write_text("a file where the folder would be")
    with Heartbeat(tmp_path, 0, every=0.01) as beat:
        beat.at(1, "step")
        beat._closed.wait(0.1)
        assert beat._thread.is_alive()


def test_a_thread_beats_while_the_main_thread_waits(tmp_path: Path) -> None:
    """As a rank does in a collective that another does not join."""
    code = (
        "import sys, threading; from pathlib import Path; from cluster.metrics import Heartbeat\n"
        "with Heartbeat(Path(sys.argv[1]), 0, every=0.05) as beat:\n"
        "    beat.at(7, 'step'); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdin=subprocess.PIPE) as rank:
        until(lambda: 0 in heartbeat.read(tmp_path))
        before = heartbeat.read(tmp_path)[0].time
        until(lambda: heartbeat.read(tmp_path)[0].time > before + 0.1)
        assert rank.stdin is not None
        rank.stdin.close()
        assert rank.wait(20) == 0
