import os
import sys
import threading
from pathlib import Path

import psutil
import pytest

from cluster.runtime.job_protocol import STOPPED
from cluster.supervise.supervisor import Attempt, Hooks, Policy, Supervisor, describe

UNREACHED = "exit code 255 (a host could not be reached or was lost, or a process ended with -1)"
QUICK = Policy(max_restarts=3, restart_wait=0)


def script(text: str) -> list[str]:
    return [sys.executable, "-c", text]


def codes(*wanted: int) -> tuple[list[int], list[str], int]:
    """Run attempts that end with the wanted codes one after the other; return starts, messages and the result."""
    starts: list[int] = []
    said: list[str] = []

    def attempt(restarts: int) -> Attempt:
        starts.append(restarts)
        return Attempt(script("import os, sys; sys.exit(int(os.environ['CODE']))"), {"CODE": str(wanted[restarts])})

    return starts, said, Supervisor(QUICK, log=said.append).run(attempt)


def test_starts_again_until_it_succeeds() -> None:
    starts, said, code = codes(1, 7, 0)
    assert (starts, code) == ([0, 1, 2], 0)
    assert any("exit code 7; restart 2 of 3" in line for line in said)


def test_gives_up_after_the_last_restart() -> None:
    starts, said, code = codes(1, 1, 1, 9)
    assert (starts, code) == ([0, 1, 2, 3], 9)
    assert "3 of 3 restarts used, giving up" in said[-1]


@pytest.mark.parametrize("final", [0, 2, STOPPED])
def test_done_bad_configuration_and_clean_stop_end_it(final: int) -> None:
    assert codes(final)[0::2] == ([0], final)


def test_success_is_doubted_when_the_job_is_not_finished() -> None:
    answers = iter(["its last checkpoint is missing", ""])
    said: list[str] = []
    supervisor = Supervisor(QUICK, log=said.append)
    assert supervisor.run(lambda restarts: Attempt(script("")), lambda: next(answers)) == 0
    assert supervisor.restarts == 1
    assert any("but its last checkpoint is missing" in line for line in said)


def test_a_killed_job_is_started_again_and_named() -> None:
    said: list[str] = []
    supervisor = Supervisor(QUICK, log=said.append)
    kill = "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"
    assert supervisor.run(lambda restarts: Attempt(script("" if restarts else kill))) == 0
    assert any("exit code 137 (SIGKILL)" in line for line in said)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (1, "exit code 1"),
        (143, "exit code 143 (SIGTERM)"),
        (247, "exit code 247 (SIGKILL)"),
        (255, UNREACHED),
    ],
)
def test_describes_codes_of_shells_and_of_the_launcher(code: int, text: str) -> None:
    assert describe(code) == text


RANK = """
import os, signal, sys, time
def save(number, frame):
    open(os.environ["SAVED"], "a").write(f"{os.getpid()}\\n")
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
with open(os.environ["READY"], "w") as fifo:
    fifo.write(f"{os.getpid()}\\n")
while True:
    time.sleep(0.1)  # not pause(): a signal just before it would not wake it
"""
# Like DeepSpeed's launcher: a parent that would take SIGTERM the wrong way, and waits for its ranks.
LAUNCHER = """
import signal, subprocess, sys
signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(99))
ranks = [subprocess.Popen([sys.executable, "-m", "rank"]) for _ in range(2)]
sys.exit(max(rank.wait() for rank in ranks))
"""


def start(
    tmp_path: Path, supervisor: Supervisor, text: str, count: int, *, rank: str = RANK
) -> tuple[threading.Thread, list[int], list[int]]:
    """Start the job in a thread and wait until `count` ranks run; return the thread, the result's list, the ranks' ids."""
    (tmp_path / "rank.py").write_text(rank)
    fifo = tmp_path / "ready"
    os.mkfifo(fifo)
    env = {"READY": str(fifo), "SAVED": str(tmp_path / "saved"), "PYTHONPATH": str(tmp_path)}
    result: list[int] = []
    thread = threading.Thread(target=lambda: result.append(supervisor.run(lambda restarts: Attempt(script(text), env))))
    thread.start()
    # Open for writing too: a rank that writes as the one before it has closed would find no reader, die, and be waited for.
    with os.fdopen(os.open(fifo, os.O_RDWR)) as lines:
        ids = [int(lines.readline()) for _ in range(count)]
    return thread, result, ids


def test_stop_reaches_the_ranks_and_not_their_launcher(tmp_path: Path) -> None:
    supervisor = Supervisor(QUICK, rank_module="rank", log=lambda text: None)
    thread, result, ids = start(tmp_path, supervisor, LAUNCHER, 2)
    supervisor.stop()
    thread.join(timeout=60)
    assert result == [STOPPED]
    assert sorted(map(int, (tmp_path / "saved").read_text().split())) == sorted(ids)


def test_ranks_that_no_signal_reaches_are_asked(tmp_path: Path) -> None:
    stop = tmp_path / "stop"
    os.mkfifo(stop)
    waits = f"import sys; open({str(stop)!r}).read(); sys.exit(75)"
    asked: list[str] = []

    def request_stop() -> None:
        asked.append("asked")
        stop.write_text("now")

    supervisor = Supervisor(QUICK, hooks=Hooks(request_stop), log=lambda text: None)
    result: list[int] = []
    begun = threading.Event()

    def attempt(restarts: int) -> Attempt:
        begun.set()
        return Attempt(script(waits))

    thread = threading.Thread(target=lambda: result.append(supervisor.run(attempt)))
    thread.start()
    assert begun.wait(30)
    supervisor.stop()
    thread.join(timeout=60)
    assert (result, asked) == ([STOPPED], ["asked"])


def test_a_job_that_does_not_end_is_killed_with_all_its_processes(tmp_path: Path) -> None:
    deaf = RANK.replace("    sys.exit(75)\n", "")
    said: list[str] = []
    supervisor = Supervisor(Policy(stop_grace=0.2), log=said.append)
    thread, result, ids = start(tmp_path, supervisor, deaf, 1)
    rank = psutil.Process(ids[0])
    supervisor.stop()
    thread.join(timeout=60)
    assert result == [137], "75 would say that there is a checkpoint"
    assert not rank.is_running()
    assert any("killing" in line for line in said) and "there is none to continue from" in said[-1]


@pytest.mark.parametrize(("newest", "code"), [("step-00000004", STOPPED), ("", 1)])
def test_stop_before_a_restart_starts_nothing_more(newest: str, code: int) -> None:
    said: list[str] = []

    def log(text: str) -> None:
        said.append(text)
        if "restart 1" in text:
            supervisor.stop()

    supervisor = Supervisor(Policy(max_restarts=3, restart_wait=1000), hooks=Hooks(saved=lambda: newest), log=log)
    assert supervisor.run(lambda restarts: Attempt(script("raise SystemExit(1)"))) == code
    assert supervisor.restarts == 1
    assert ("continues from step-00000004" if newest else "there is none to continue from") in said[-1]


def test_signals_that_come_together_are_one_and_a_later_one_kills(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Slurm signals a job's script and its steps: the second signal was taken for an order to kill, and the checkpoint was lost."""
    now = [100.0]
    monkeypatch.setattr("cluster.supervise.supervisor.time.monotonic", lambda: now[0])
    slow = RANK.replace("    sys.exit(75)\n", "    import time; time.sleep(1.0); sys.exit(75)\n")
    supervisor = Supervisor(QUICK, log=lambda text: None)
    thread, result, _ = start(tmp_path, supervisor, slow, 1)
    supervisor.stop()
    now[0] += 1.9
    supervisor.stop()
    thread.join(timeout=60)
    assert result == [STOPPED], "it had the time to save"
    (tmp_path / "ready").unlink()
    said: list[str] = []
    other = Supervisor(QUICK, log=said.append)
    thread, result, _ = start(tmp_path, other, RANK.replace("    sys.exit(75)\n", ""), 1)
    other.stop()
    now[0] += 2.1
    other.stop()
    thread.join(timeout=60)
    assert result == [137] and "stopped a second time: killing the job" in said


LOADING = """
import os, signal, sys, time
with open(os.environ["READY"], "w") as fifo:
    fifo.write(f"{os.getpid()}\\n")
time.sleep(1.0)  # loads; no handler yet
def save(number, frame):
    sys.exit(75)
signal.signal(signal.SIGTERM, save)
signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGTERM])
while True:
    time.sleep(0.1)
"""


def test_a_signal_to_every_process_ends_no_rank_that_still_loads(tmp_path: Path) -> None:
    """A batch system signals the launcher and all ranks itself, at any time."""
    supervisor = Supervisor(QUICK, rank_module="rank", log=lambda text: None, holds_signals=True)
    thread, result, ids = start(tmp_path, supervisor, LAUNCHER, 2, rank=LOADING)
    launcher = psutil.Process(psutil.Process(ids[0]).ppid())
    for process in (launcher, *launcher.children()):
        process.terminate()
    supervisor.stop()
    thread.join(timeout=60)
    assert result == [STOPPED], "the launcher did not take it, and the ranks got it when they had loaded"


def test_a_start_that_fails_before_it_is_renewed_leaves_that_to_the_next(tmp_path: Path) -> None:
    """The request to stop stays in the run folder: the next start ended after a step, with 75, and the job with it."""
    stop = tmp_path / "stop"
    codes = [1, STOPPED, 0]

    def attempt(restarts: int) -> Attempt:
        if not restarts:
            supervisor.renew("host b answers again")
        if codes[restarts] == STOPPED:
            assert stop.exists()
            stop.unlink()
        return Attempt(script(f"raise SystemExit({codes[restarts]})"))

    supervisor = Supervisor(QUICK, hooks=Hooks(request_stop=stop.touch), log=lambda text: None)
    assert supervisor.run(attempt) == 0 and supervisor.restarts == 2
