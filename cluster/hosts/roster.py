"""The hosts of a job over ssh: which of them take part in the next start, and what is done on all of them.

In:  the hosts of the hostfile; who failed. Out: the hosts to start on, in the hostfile's order.

A host that does not answer is left out, and one that was the first to fail twice in succession, for a while. While a job runs without
some hosts, these are asked again and again, and taken back by a clean stop and a new start. Before each start, what an earlier one
of this launch left is killed on every host.
"""

from __future__ import annotations

import contextlib
import shlex
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from cluster.config import ConfigError
from cluster.hosts.hostfile import Host
from cluster.hosts.ssh_launcher import HOST_SECONDS, Reach, ssh_command
from cluster.runtime.job_protocol import LAUNCH

ASK_SECONDS = 15.0
"""Seconds between two questions to the hosts that are left out, where nothing else is configured."""
MORE_SECONDS = 15.0
"""Seconds that a host has for what is done on it between two starts, beside those to connect."""
MENDS = {
    "ssh": "check the hostfile and the keys: `videoar preflight -c CFG --hostfile FILE` looks at each host",
    "slurm": "`videoar preflight -c CFG --via slurm` looks at each node",
    "ray": "`ray status` says which nodes the cluster has",
}
"""What to do where no host answers, by the value of --via."""
STRIKES = 2
"""First failures in succession after which a host is left out."""


def kill_command(launch: str) -> str:
    """Return the shell command that kills the ranks of the launch on a host; they outlive the ssh session that started them.

    They are known by the variable LAUNCH in their environment, which holds the launch's own token: another job, of whatever
    configuration, is not met.
    """
    has_it = f"{{ tr '\\0' '\\n' <$each/environ | grep -qx {shlex.quote(f'{LAUNCH}={launch}')}; }} 2>/dev/null"
    return f"for each in /proc/[0-9]*; do if {has_it}; then kill -KILL ${{each#/proc/}}; fi; done"


def on_hosts(hosts: Sequence[Host], command: str, seconds: float = HOST_SECONDS, reach: Reach = ssh_command) -> list[str]:
    """Run a shell command on every host at once; returns why it failed there, or an empty string.

    seconds: after which a host that does not answer is given up.
    """

    def one(host: Host) -> str:
        try:
            done = subprocess.run(
                reach(host.name, command, seconds), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
                check=False, timeout=seconds + MORE_SECONDS,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return f"no answer in {seconds + MORE_SECONDS:g} s"
        said = done.stderr.decode(errors="replace").strip().splitlines()
        return "" if done.returncode == 0 else said[-1] if said else f"exit code {done.returncode}"

    with ThreadPoolExecutor(max_workers=64) as pool:
        return list(pool.map(one, hosts))


class NoHost(ConfigError):
    """No host can be reached at all; the message names them and the fix."""


@dataclass
class Roster:
    """Who takes part."""

    hosts: Sequence[Host]
    least: int
    """Hosts below which no start is made (cluster.min_hosts)."""
    rest_seconds: float
    """Seconds that a host rests which was the first to fail STRIKES times in succession (cluster.host_rest_seconds)."""
    answering: Callable[[Sequence[Host], bool], list[str]]
    """Asks hosts, returns why each did not answer, or an empty string; true: also kills what this launch has running there, of which
    nothing is to be left."""
    log: Callable[[str], None]
    ask_seconds: float = ASK_SECONDS
    """Seconds between two questions to the hosts that are left out."""
    mend: str = MENDS["ssh"]
    """What to do where no host has ever answered."""
    now: Callable[[], float] = time.monotonic
    active: tuple[Host, ...] = ()
    _answered: bool = False
    """Whether any host ever was ready."""
    _strikes: dict[str, int] = field(default_factory=dict)
    _problems: dict[str, str] = field(default_factory=dict)
    """Why each host did not answer when it was last asked."""
    _resting: dict[str, float] = field(default_factory=dict)

    def failed(self, name: str) -> None:
        """Note that `name` was the first host to fail in this start; an empty name: none was."""
        self._strikes = {name: self._strikes.get(name, 0) + 1} if name else {}
        if name and self._strikes[name] >= STRIKES:
            self._resting[name] = self.now() + self.rest_seconds
            self._strikes = {}
            self.log(f"host {name} failed {STRIKES} times in succession: left out for {self.rest_seconds:g} s")

    def ready(self, hosts: Sequence[Host], *, clear: bool) -> tuple[Host, ...]:
        """Return those of `hosts` that answer and do not rest. clear: no start is running, and nothing of one may be."""
        awake = [host for host in hosts if self._resting.get(host.name, 0.0) <= self.now()]
        problems = self.answering(awake, clear)
        self._problems |= {host.name: problem for host, problem in zip(awake, problems, strict=True)}
        return tuple(host for host, problem in zip(awake, problems, strict=True) if not problem)

    def muster(self, wait: Callable[[float], bool]) -> tuple[Host, ...]:
        """Choose the hosts of the next start; waits until there are enough. Empty when `wait(seconds)` says that the job is to stop.

        Raises NoHost where none has ever answered: then the hostfile or the keys are wrong, which waiting does not mend.
        """
        told = 0
        while True:
            self.active = self.ready(self.hosts, clear=True)
            self._answered = self._answered or bool(self.active)
            if not self._answered:
                raise NoHost(f"none of the {len(self.hosts)} hosts answers ({self._named(self.hosts)}); {self.mend}")
            if not self.active or len(self.active) < self.least:
                if told % 20 == 0:
                    self.log(
                        f"{len(self.active)} of {len(self.hosts)} hosts are ready, {max(1, self.least)} are needed: waiting"
                    )
                told += 1
                if wait(self.ask_seconds):
                    return ()
                continue
            out = [host for host in self.hosts if host not in self.active]
            if out:
                self.log(f"going on with {len(self.active)} of {len(self.hosts)} hosts, without {self._named(out)}")
            return self.active

    def _named(self, hosts: Sequence[Host]) -> str:
        """Return some hosts, each with what it said last."""
        said = [host.name + (f": {problem}" if (problem := self._problems.get(host.name, "")) else "") for host in hosts[:8]]
        return ", ".join(said) + (", ..." if len(hosts) > 8 else "")

    @contextlib.contextmanager
    def watching(self, returned: Callable[[str], None]) -> Iterator[None]:
        """While this is open, ask the hosts that are left out, and call `returned(names)` once when some answer twice in succession."""
        closed = threading.Event()

        def ask() -> None:
            before: tuple[Host, ...] = ()
            while not closed.wait(self.ask_seconds):
                out = [host for host in self.hosts if host not in self.active]
                now = self.ready(out, clear=False)
                again = [host.name for host in now if host in before]
                before = now
                if again and not closed.is_set():
                    returned(", ".join(again))
                    return

        thread = threading.Thread(target=ask, name="roster", daemon=True)
        if len(self.active) < len(self.hosts):
            thread.start()
        try:
            yield
        finally:
            closed.set()
            if thread.is_alive():
                thread.join()
