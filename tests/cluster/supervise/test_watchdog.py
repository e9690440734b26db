from __future__ import annotations

import json
import sys
import threading
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.metrics import heartbeat
from cluster.metrics.heartbeat import Beat
from cluster.supervise import watchdog
from cluster.supervise.supervisor import Attempt, Hooks, Policy, Supervisor
from cluster.supervise.watchdog import StallLimit, Watchdog


def test_a_file_that_stands_still_is_noticed_once(tmp_path: Path) -> None:
    file, told, noticed = tmp_path / "metrics.jsonl", [], threading.Event()

    def act(reason: str) -> None:
        told.append(reason)
        noticed.set()

    file.write_text("{}\n")
    with Watchdog(StallLimit(file, 0.2), act):
        assert noticed.wait(30)
    assert told == [f"{file} has not changed for 0.2 s"]


def test_a_file_that_moves_is_left_alone_and_a_missing_one_counts_as_still(tmp_path: Path) -> None:
    told: list[str] = []
    noticed = threading.Event()
    with Watchdog(StallLimit(tmp_path / "a", 3600.0), told.append):
        (tmp_path / "a").write_text("step")
    with Watchdog(StallLimit(tmp_path / "absent", 0.1), lambda reason: noticed.set()):
        assert noticed.wait(30)
    assert told == []


def test_a_job_that_hangs_is_killed_and_started_again(tmp_path: Path) -> None:
    said: list[str] = []
    hang = "import signal; signal.pause()"
    policy = Policy(max_restarts=1, restart_wait=0, stall=StallLimit(tmp_path / "metrics.jsonl", 3.0))
    supervisor = Supervisor(policy, log=said.append)
    code = supervisor.run(lambda restarts: Attempt([sys.executable, "-S", "-c", "" if restarts else hang]))
    assert code == 0 and supervisor.restarts == 1
    assert any("has not changed for 3 s: killing the job" in line for line in said)
    assert any("exit code 137 (SIGKILL); restart 1 of 1" in line for line in said)


class Clock:
    """Time, a file and heartbeats, moved by hand; `Watchdog._poll` looks once a second."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: StallLimit, ranks: int) -> None:
        self.now, self.steps, self.said = 0.0, 0, list[str]()
        self.beats = {rank: Beat(rank, f"host-{rank}", 10 + rank, 0.0, 0, "start") for rank in range(ranks)}
        self.silent: set[int] = set()
        self.run, self.file = tmp_path, limit.file
        monkeypatch.setattr(watchdog.time, "monotonic", lambda: self.now)
        self.dog = Watchdog(limit, self.speak)
        self.turn, self.told = threading.Semaphore(0), threading.Semaphore(0)
        monkeypatch.setattr(self.dog._closed, "wait", self.wait)
        self.thread = threading.Thread(target=self.dog._poll)
        self.thread.start()
        self.told.acquire()

    def wait(self, seconds: float) -> bool:
        self.told.release()
        self.turn.acquire()
        return self.dog._closed.is_set()

    def speak(self, reason: str) -> None:
        self.said.append(reason)
        self.told.release()

    def go(self, seconds: int, *, step: bool = False, phase: str = "step") -> None:
        """Let time pass second by second; step: then end a step."""
        for second in range(seconds):
            self.now += 1
            if step and second == seconds - 1:
                self.steps += 1
                self.file.write_text("x" * self.steps)
            for rank, beat in self.beats.items():
                if rank not in self.silent:
                    self.beats[rank] = replace(beat, time=self.now, step=self.steps, phase=phase)
                    path = heartbeat.path_of(self.run, rank)
                    path.parent.mkdir(exist_ok=True)
                    path.write_text(json.dumps(asdict(self.beats[rank])))
            if not self.said:
                self.turn.release()
                self.told.acquire()

    def close(self) -> None:
        self.dog._closed.set()
        self.turn.release()
        self.thread.join()


@pytest.fixture
def limit(tmp_path: Path) -> StallLimit:
    return StallLimit(tmp_path / "metrics.jsonl", 1800.0, 900.0, tmp_path, 30.0)


def said_after(clock: Clock, seconds: int, phase: str = "step") -> str:
    """What is said within so many seconds, and nothing before."""
    clock.go(seconds - 1, phase=phase)
    assert clock.said == []
    clock.go(3, phase=phase)
    clock.close()
    return clock.said[0]


def test_the_start_has_a_limit_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: StallLimit) -> None:
    said = said_after(Clock(tmp_path, monkeypatch, limit, 2), 900, "start")
    assert said.startswith("no step has ended since the start, ") and said.endswith("(start of step 0: 2 ranks, 0, 1)")


@pytest.mark.parametrize(("seconds", "limit_seconds"), [(2, 60), (20, 200)])
def test_a_step_may_take_ten_times_as_long_as_those_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: StallLimit, seconds: int, limit_seconds: int
) -> None:
    clock = Clock(tmp_path, monkeypatch, limit, 2)
    for _ in range(4):
        clock.go(seconds, step=True)
    said = said_after(clock, limit_seconds)
    assert f"has not changed for {limit_seconds} s (step of step 4: 2 ranks, 0, 1)" in said


def test_what_is_no_step_has_the_longest_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: StallLimit) -> None:
    clock = Clock(tmp_path, monkeypatch, limit, 2)
    for _ in range(4):
        clock.go(2, step=True)
    assert "has not changed for 1800 s (validation of step 4" in said_after(clock, 1800, "validation")


def test_a_silent_rank_is_named_while_others_beat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: StallLimit) -> None:
    clock = Clock(tmp_path, monkeypatch, limit, 3)
    for _ in range(3):
        clock.go(2, step=True)
    clock.silent = {1}
    said = said_after(clock, 31)
    assert said.startswith("no heartbeat of rank 1 (host-1, step 3, step) for 31 s, while others beat"), said


def test_a_rank_that_loads_may_be_silent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: StallLimit) -> None:
    clock = Clock(tmp_path, monkeypatch, limit, 2)
    clock.go(1, phase="start")
    clock.silent = {1}
    assert said_after(clock, 899, "start").startswith("no step has ended since the start")


def test_a_disk_that_hangs_silences_all_and_is_no_lost_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: StallLimit
) -> None:
    clock = Clock(tmp_path, monkeypatch, limit, 3)
    for _ in range(3):
        clock.go(20, step=True)
    clock.silent = {0, 1, 2}
    assert "has not changed for 200 s" in said_after(clock, 200)


def test_restarts_wait_longer_each_time_and_are_counted_anew_after_progress() -> None:
    said: list[str] = []
    checkpoints = iter([0, 0, 0, 4, 4, 4, 4])
    policy = Policy(max_restarts=2, restart_wait=0.01)
    supervisor = Supervisor(policy, hooks=Hooks(progress=lambda: next(checkpoints)), log=said.append)
    assert supervisor.run(lambda restarts: Attempt([sys.executable, "-S", "-c", "raise SystemExit(1)"])) == 1
    waits = [line.rpartition(" in ")[2] for line in said if "restart" in line and "giving up" not in line]
    assert waits == ["0.01 s", "0.02 s", "0.01 s", "0.02 s"] and "2 of 2 restarts used, giving up" in said[-1]
    assert supervisor.restarts == 4
