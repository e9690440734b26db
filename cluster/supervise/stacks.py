"""Where the ranks of a stalled job are: the stacks of their threads, written down before the job is killed.

In:  the run folder, the ranks of this machine.
Out: RUN/log/rank-N.stacks. A rank that still beats writes its own, on any host (cluster/metrics/heartbeat.py); one that does not, and runs
     on this machine, is read from outside by py-spy.
"""

from __future__ import annotations

import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from cluster.metrics import heartbeat

PATIENCE = 2.5 * heartbeat.EVERY
"""Seconds that the ranks have to write."""
AGE = 1.5 * heartbeat.EVERY
"""Seconds by which a rank's last beat may be older than the newest one, for it to be waited for."""


def write_stacks(run: Path, processes: Sequence[psutil.Process], *, patience: float = PATIENCE) -> None:
    """Ask all ranks for their stacks, wait for them, and read those of this machine that do not answer."""
    beats = heartbeat.read(run)
    before = {rank: _size(run, rank) for rank in beats}
    newest = max((beat.time for beat in beats.values()), default=0.0)
    answering = [rank for rank, beat in beats.items() if beat.time > newest - AGE]
    heartbeat.ask_for_stacks(run)
    _wait(lambda: all(_size(run, rank) > before[rank] for rank in answering), patience)
    ranks = {beat.pid: rank for rank, beat in beats.items() if beat.host == socket.gethostname()}
    for process in processes:
        rank = ranks.get(process.pid)
        if rank is not None and _size(run, rank) == before[rank]:
            with heartbeat.stacks_of(run, rank).open("a") as file:
                file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} rank {rank}, silent; read by py-spy\n{_read(process.pid)}\n")


def _read(pid: int) -> str:
    """Return the stacks of a process, read without its help; or why they cannot be read."""
    beside = Path(sys.executable).with_name("py-spy")
    command = [str(beside) if beside.exists() else "py-spy", "dump", "--pid", str(pid)]
    said = ""
    for more in (["--nonblocking"], [], ["--nonblocking"]):  # without a pause it may meet a process in the middle of a change
        try:
            done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=20, check=False)
        except FileNotFoundError:
            return "py-spy is not installed"
        except subprocess.TimeoutExpired:
            said = "py-spy did not answer within 20 s"
            continue
        if done.returncode == 0 and "Thread" in done.stdout:
            return done.stdout
        said = f"py-spy: {' '.join(done.stderr.split()) or 'found no thread'}"
    return said


def _size(run: Path, rank: int) -> int:
    try:
        return heartbeat.stacks_of(run, rank).stat().st_size
    except FileNotFoundError:
        return 0


def _wait(done: Callable[[], bool], seconds: float) -> None:
    until = time.monotonic() + seconds
    while not done() and time.monotonic() < until:
        time.sleep(0.2)
