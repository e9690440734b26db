"""Runs one job's processes to their end: forwards signals, starts again after a failure.

In:  a function from the number of restarts so far to a command, and a policy.
Out: the job's exit code. 0 done, 75 stopped cleanly (start again to go on), 2 a usage or configuration error.
Called by: `launch`. Output of the job goes straight to this process's own stdout and stderr.

Why signals go to the ranks and not to the launcher: DeepSpeed's launcher answers SIGTERM by killing
each rank after 30 s, which would cut a checkpoint short. Ranks that end by themselves end the launcher too.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

import psutil

from cluster.launch.processes import parent_of, runs_module
from cluster.launch.watchdog import Watch, Watchdog
from cluster.runtime.exit_codes import STOPPED

DONE = 0
FAILED = 1
USAGE = 2


@dataclass(frozen=True)
class Policy:
    """When to start again, and how to stop."""

    max_restarts: int = 0
    """Failures that are answered by a new start."""
    restart_wait: float = 2.0
    """Seconds before a new start."""
    stop_grace: float = 120.0
    """Seconds that the job gets to save and end after SIGTERM or SIGINT, before it is killed."""
    watch: Watch | None = None
    """A job that stands still is killed, and started again as after any failure."""


@dataclass(frozen=True)
class Attempt:
    """One start of the job."""

    command: Sequence[str]
    """Program and arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Additions to this process's environment."""


def describe(code: int) -> str:
    """Say an exit code in words; codes over 128 come from signals, as shells and as DeepSpeed's launcher write them."""
    for number in (code - 128, 256 - code):
        if 0 < number < 32:
            with contextlib.suppress(ValueError):
                return f"exit code {code} ({signal.Signals(number).name})"
    return f"exit code {code}"


class Supervisor:
    """Runs attempts one after the other. `stop` may be called from a signal handler or another thread."""

    def __init__(
        self,
        policy: Policy,
        *,
        rank_module: str = "",
        ask: Callable[[], None] | None = None,
        sweep: Callable[[], None] | None = None,
        say: Callable[[str], None] | None = None,
    ) -> None:
        """`rank_module`: processes started as `python -m rank_module` take the signals; empty = the command itself.

        `ask`: asks ranks that no signal of this machine reaches to save and end. `sweep`: ends those that are left over
        when a start has failed.
        """
        self.policy = policy
        self.restarts = 0
        self._rank_module = rank_module
        self._ask, self._sweep = ask, sweep
        self._say = say if say is not None else _say
        self._process: subprocess.Popen[bytes] | None = None
        self._overdue: threading.Timer | None = None
        self._stopping = threading.Event()

    def run(self, attempt: Callable[[int], Attempt], finished: Callable[[], str] | None = None) -> int:
        """Run to the end and return the exit code.

        `attempt(n)` gives the start after n restarts. `finished()` is asked after exit code 0: an empty text agrees,
        any other is the reason why the job is not done (DeepSpeed's launcher returns 0 when a part of it is killed).
        """
        with self._signals():
            while True:
                code = self._once(attempt(self.restarts))
                reason = finished() if code == DONE and finished is not None else ""
                if reason:
                    self._say(f"the job ended with exit code 0, but {reason}")
                    code = FAILED
                if self._stopping.is_set():
                    # A rank that had no handler yet dies of the signal itself: that is the stop that was asked for.
                    return STOPPED if reason or code in _SIGNALLED else code
                if code in (DONE, USAGE, STOPPED):
                    return code
                if self.restarts >= self.policy.max_restarts:
                    self._say(f"{describe(code)}; {self.restarts} of {self.policy.max_restarts} restarts used, giving up")
                    return code
                self.restarts += 1
                self._say(
                    f"{describe(code)}; restart {self.restarts} of {self.policy.max_restarts} "
                    f"from the newest checkpoint in {self.policy.restart_wait:g} s"
                )
                if self._stopping.wait(self.policy.restart_wait):
                    return STOPPED

    def stop(self) -> None:
        """Ask the job to save and end; no new start follows. A second call kills it."""
        if self._stopping.is_set():
            self.kill()
            return
        self._stopping.set()
        self._terminate()

    def kill(self) -> None:
        """Kill the running attempt with all its processes on this machine."""
        if self._process is not None:
            _kill_group(self._process.pid)

    def _terminate(self) -> None:
        if self._process is None:
            return
        targets = self._targets(self._process.pid) if self._ask is None else []
        whom = (
            f"SIGTERM to {len(targets)} process(es), which get"
            if self._ask is None
            else "the ranks on all hosts are asked and get"
        )
        self._say(f"stopping: {whom} {self.policy.stop_grace:g} s to save and end")
        self._overdue = threading.Timer(self.policy.stop_grace, self._kill_overdue)
        self._overdue.daemon = True
        self._overdue.start()
        if self._ask is not None:
            self._ask()
        for target in targets:
            with contextlib.suppress(psutil.NoSuchProcess):
                target.terminate()

    def _targets(self, pid: int) -> list[psutil.Process]:
        """Processes that take the signal: the topmost `python -m rank_module` below `pid`, else `pid` itself."""
        try:
            top = psutil.Process(pid)
            below = top.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        ranks = [process for process in below if self._rank_module and runs_module(process, self._rank_module)]
        pids = {process.pid for process in ranks}
        return [process for process in ranks if parent_of(process) not in pids] or [top]

    def _once(self, attempt: Attempt) -> int:
        self._say(shlex.join(attempt.command))
        # A session of its own: Ctrl-C on the terminal reaches only this process, which forwards it to the ranks.
        with subprocess.Popen(list(attempt.command), env={**os.environ, **attempt.env}, start_new_session=True) as process:
            self._process = process
            if self._stopping.is_set():  # the signal came while the process was being made
                self._terminate()
            with contextlib.ExitStack() as watching:
                if self.policy.watch is not None:
                    watching.enter_context(Watchdog(self.policy.watch, self._kill_still))
                code = process.wait()
            self._process = None
            if self._overdue is not None:
                self._overdue.cancel()
            _kill_group(process.pid)
        if self._sweep is not None and code != DONE:
            self._sweep()
        return code if code >= 0 else 128 - code

    def _kill_still(self, reason: str) -> None:
        self._say(f"{reason}: killing the job")
        self.kill()

    def _kill_overdue(self) -> None:
        if self._process is not None:
            self._say(f"not ended after {self.policy.stop_grace:g} s: killing")
            self.kill()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Turn SIGTERM and SIGINT into `stop`. Python lets only the main thread do so."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self.stop()

        before = {number: signal.signal(number, handle) for number in (signal.SIGTERM, signal.SIGINT)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


_SIGNALLED = frozenset(
    code for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL) for code in (128 + number, 256 - number)
)


def _say(text: str) -> None:
    # Not print: this runs in signal handlers too, where a buffered stream refuses to be entered twice.
    os.write(2, f"[launch] {text}\n".encode())


def _kill_group(pgid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pgid, signal.SIGKILL)
