"""Runs a job until it ends: forwards signals to its ranks, restarts it after a failure.

In:  a function that returns the command for the n-th restart, and a policy.
Out: the job's exit code (`cluster.runtime.job_protocol`). The job's output goes to this process's own stdout and stderr.

Signals go to the ranks and not to the launcher, because DeepSpeed's launcher answers SIGTERM by killing each rank after 30 s,
which would interrupt a checkpoint. When the ranks exit by themselves, the launcher exits too. A batch system signals every process of
a job itself, so the launcher is started with STOP_SIGNALS blocked. Its ranks inherit that and unblock them once they have handlers
(cluster/runtime/job_protocol.py): what came before is then delivered, and no rank dies of a signal while it loads.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import FrameType

import psutil

from cluster.runtime.job_protocol import DONE, FAILED, STOPPED, UNREACHABLE, USAGE
from cluster.supervise.processes import parent_pid, runs_module
from cluster.supervise.watchdog import StallLimit, Watchdog

LONGEST_WAIT = 300.0
"""Most seconds before a restart, unless the first wait is longer."""
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
AS_ONE = 2.0
"""Seconds within which signals count as one: a batch system may send SIGTERM to a job's steps and to its script."""
_SIGNALLED = frozenset(
    code for number in (signal.SIGTERM, signal.SIGINT, signal.SIGKILL) for code in (128 + number, 256 - number)
)
"""Exit codes of a process that a signal ended, as shells and as DeepSpeed's launcher write them."""


@dataclass(frozen=True)
class Policy:
    """When to restart a job, and how to stop it."""

    max_restarts: int = 0
    """How many failures in succession, without progress in between, are followed by a restart."""
    restart_wait: float = 2.0
    """Seconds before the first restart; each further one without progress in between waits twice as long, up to LONGEST_WAIT."""
    stop_grace: float = 120.0
    """Seconds that the job has, after SIGTERM or SIGINT, to write a checkpoint and exit before it is killed."""
    stall: StallLimit | None = None
    """A job that makes no progress for this long is killed, and restarted as after any failure."""


@dataclass(frozen=True)
class Attempt:
    """One start of the job."""

    command: Sequence[str]
    """Program and arguments."""
    env: Mapping[str, str] = field(default_factory=dict)
    """Environment variables to add to this process's own."""


@dataclass(frozen=True)
class Hooks:
    """What a supervisor asks of the job that it runs; each is optional."""

    request_stop: Callable[[], None] | None = None
    """Asks ranks on other hosts, which no signal reaches, to write a checkpoint and exit."""
    kill_leftovers: Callable[[], None] | None = None
    """Kills the ranks that are still there after a failure."""
    saved: Callable[[], str] | None = None
    """Reads back the newest checkpoint and returns its name, or an empty string; asked when a job that is to stop has written none."""
    progress: Callable[[], int] | None = None
    """Returns the newest checkpoint's step; when it rises, restarts are counted anew."""
    dump_stacks: Callable[[Sequence[psutil.Process]], None] | None = None
    """Writes down where the ranks of a stalled job are, before they are killed; takes those of this machine."""
    around: Callable[[], contextlib.AbstractContextManager[None]] | None = None
    """Entered while a start runs."""


def describe(code: int) -> str:
    """Return an exit code in words, with the name of the signal that it stands for."""
    if code == UNREACHABLE:
        # Also 256 - SIGHUP; but nothing sends that here, and ssh and `exit(-1)` end so.
        return f"exit code {code} (a host could not be reached or was lost, or a process ended with -1)"
    for number in (code - 128, 256 - code):
        if 0 < number < 32:
            with contextlib.suppress(ValueError):
                return f"exit code {code} ({signal.Signals(number).name})"
    return f"exit code {code}"


class Supervisor:
    """Starts a job again until it is done. `stop` may be called from a signal handler or from another thread."""

    def __init__(
        self,
        policy: Policy,
        *,
        rank_module: str = "",
        hooks: Hooks | None = None,
        holds_signals: bool = False,
        log: Callable[[str], None] | None = None,
    ) -> None:
        """rank_module: signals go to processes started as `python -m rank_module`; empty: to the command itself.

        holds_signals: ranks unblock the signals of a stop themselves, so the command is started with these blocked.
        """
        self.policy = policy
        self.restarts = 0
        self._rank_module = rank_module
        self._hooks = hooks or Hooks()
        self._holds_signals = holds_signals
        self._log = say if log is None else log
        self._process: subprocess.Popen[bytes] | None = None
        self._overdue: threading.Timer | None = None
        self._stopping = threading.Event()
        self._stopped_at = 0.0
        self._renewing = False

    def run(self, attempt: Callable[[int], Attempt | None], unfinished: Callable[[], str] | None = None) -> int:
        """Run the job until it is done or given up, and return its exit code.

        attempt: returns what to run after n restarts, or None if the job is to stop before that. unfinished: called after exit code
        0, returns why the job is not done, or an empty string (DeepSpeed's launcher returns 0 when a process of its own is killed).
        """
        used, reached = 0, self._reached()
        with self._signals():
            while True:
                start = attempt(self.restarts)
                if start is None:
                    return self._cut_short(FAILED)
                code = self._once(start)
                reason = unfinished() if code == DONE and unfinished is not None else ""
                if reason:
                    self._log(f"the job ended with exit code 0, but {reason}")
                    code = FAILED
                if self._stopping.is_set():
                    return self._cut_short(code) if reason or code in _SIGNALLED else code
                if code == STOPPED and self._renewing:  # a start that fails before it sees the request leaves it to the next
                    self._renewing = False
                    self.restarts += 1
                    continue
                if code in (DONE, USAGE, STOPPED):
                    return code
                now = self._reached()
                if now > reached:
                    used, reached = 0, now
                if used >= self.policy.max_restarts:
                    self._log(f"{describe(code)}; {used} of {self.policy.max_restarts} restarts used, giving up")
                    return code
                self.restarts, used = self.restarts + 1, used + 1
                wait = min(self.policy.restart_wait * 2 ** (used - 1), max(LONGEST_WAIT, self.policy.restart_wait))
                self._log(
                    f"{describe(code)}; restart {used} of {self.policy.max_restarts} from the newest checkpoint in {wait:g} s"
                )
                if self._stopping.wait(wait):
                    return self._cut_short(code)

    def _reached(self) -> int:
        return 0 if self._hooks.progress is None else self._hooks.progress()

    def _cut_short(self, code: int) -> int:
        """Return the exit code of a job that was to stop and ended without a checkpoint of its own: 75 if one can be continued from."""
        newest = "" if self._hooks.saved is None else self._hooks.saved()
        if newest:
            self._log(f"{describe(code)}: stopped before it wrote a checkpoint; the same command continues from {newest}")
            return STOPPED
        self._log(f"{describe(code)}: stopped before it wrote a checkpoint, and there is none to continue from")
        return code if code not in (DONE, STOPPED) else FAILED

    def stop(self) -> None:
        """Ask the job to write a checkpoint and exit, and do not restart it. A second call, after more than AS_ONE seconds, kills it."""
        now = time.monotonic()
        if self._stopping.is_set():
            if now - self._stopped_at > AS_ONE:
                self._log("stopped a second time: killing the job")
                self.kill()
            return
        self._stopped_at = now
        self._stopping.set()
        self._terminate()

    def renew(self, reason: str) -> None:
        """Ask the job to write a checkpoint and exit, and start it again: what it runs on has changed."""
        if not self._stopping.is_set() and self._hooks.request_stop is not None:
            self._log(f"{reason}: the job writes a checkpoint and is started again")
            self._renewing = True
            self._hooks.request_stop()

    def wait(self, seconds: float) -> bool:
        """Wait; returns whether the job is to stop, and at once if so."""
        return self._stopping.wait(seconds)

    def kill(self) -> None:
        """Kill all processes of the job on this machine."""
        if self._process is not None:
            _kill_group(self._process.pid)

    def _terminate(self) -> None:
        if self._process is None:
            return
        targets = self._targets(self._process.pid) if self._hooks.request_stop is None else []
        how = "asking the ranks on all hosts" if self._hooks.request_stop else f"sending SIGTERM to {len(targets)} process(es)"
        self._log(f"stopping: {how}; {self.policy.stop_grace:g} s to write a checkpoint and exit")
        self._overdue = threading.Timer(self.policy.stop_grace, self._kill_overdue)
        self._overdue.daemon = True
        self._overdue.start()
        if self._hooks.request_stop is not None:
            self._hooks.request_stop()
        for target in targets:
            with contextlib.suppress(psutil.NoSuchProcess):
                target.terminate()

    def _targets(self, pid: int) -> list[psutil.Process]:
        """Return the processes to signal: the topmost `python -m rank_module` under `pid`, or else `pid` itself."""
        try:
            top = psutil.Process(pid)
            below = top.children(recursive=True)
        except psutil.NoSuchProcess:
            return []
        ranks = [process for process in below if self._rank_module and runs_module(process, self._rank_module)]
        pids = {process.pid for process in ranks}
        return [process for process in ranks if parent_pid(process) not in pids] or [top]

    def _once(self, attempt: Attempt) -> int:
        self._log(shlex.join(attempt.command))
        # In a session of its own: Ctrl-C on the terminal then reaches only this process, which forwards it to the ranks.
        with self._started(attempt) as process:
            self._process = process
            if self._stopping.is_set():  # the signal came while the process was being started
                self._terminate()
            with contextlib.ExitStack() as watching:
                if self._hooks.around is not None:
                    watching.enter_context(self._hooks.around())
                if self.policy.stall is not None:
                    watching.enter_context(Watchdog(self.policy.stall, self._kill_stalled))
                code = process.wait()
            self._process = None
            if self._overdue is not None:
                self._overdue.cancel()
            _kill_group(process.pid)
        if self._hooks.kill_leftovers is not None and code != DONE:
            self._hooks.kill_leftovers()
        return code if code >= 0 else 128 - code

    def _started(self, attempt: Attempt) -> subprocess.Popen[bytes]:
        before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS if self._holds_signals else ())
        try:
            return subprocess.Popen(list(attempt.command), env={**os.environ, **attempt.env}, start_new_session=True)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _kill_stalled(self, reason: str) -> None:
        process = self._process
        if self._hooks.dump_stacks is not None and process is not None:
            self._log(f"{reason}: writing down the stacks of all ranks, then killing the job")
            self._hooks.dump_stacks(self._targets(process.pid))
        else:
            self._log(f"{reason}: killing the job")
        self.kill()

    def _kill_overdue(self) -> None:
        if self._process is not None:
            self._log(f"still running after {self.policy.stop_grace:g} s: killing the job")
            self.kill()

    @contextlib.contextmanager
    def _signals(self) -> Iterator[None]:
        """Call `stop` on the signals of a stop. Python allows signal handlers in the main thread only."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, frame: FrameType | None) -> None:
            self.stop()

        before = {number: signal.signal(number, handle) for number in STOP_SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def say(text: str) -> None:
    """Write a line to the console; not by print, whose buffer a signal handler must not enter a second time."""
    os.write(2, f"[launch] {text}\n".encode())


def _kill_group(pgid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(pgid, signal.SIGKILL)
