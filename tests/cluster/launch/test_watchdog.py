import sys
import threading
from pathlib import Path

from cluster.launch.supervisor import Attempt, Policy, Supervisor
from cluster.launch.watchdog import StallLimit, Watchdog


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
