"""A Ray cluster over the hosts of tests/helpers/hosts.py: a head beside them, which offers no CPU, and a node on each."""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.launch.ray_head import ray_environment, ray_program
from cluster.runtime.ports import free_port
from cluster.supervise.processes import tied
from tests.helpers.hosts import Hosts

PATIENCE = 180.0
"""Seconds after which a node does not start any more."""
COMMON = ("--block", "--disable-usage-stats", "--object-store-memory=80000000", "--min-worker-port=0", "--max-worker-port=0")
QUICK = {
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "1000",
    "RAY_health_check_failure_threshold": "3",
}
"""A node that is gone is noticed within seconds."""


@dataclass
class RayOfHosts:
    """The cluster; `environment` is what its clients need."""

    net: Hosts
    folder: Path
    token: str = field(default_factory=lambda: secrets.token_hex(32))
    """Of this cluster: one that an earlier Ray left in the home folder would be asked for by some of its processes, not by all."""
    port: int = 0
    """Of the head, on the bridge's own address."""
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    @property
    def environment(self) -> dict[str, str]:
        return {"RAY_ADDRESS": f"{self.net.gateway}:{self.port}", **self._own}

    @property
    def _own(self) -> dict[str, str]:
        return {"RAY_TMPDIR": str(self.folder), "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": self.token}

    def node(self, number: int) -> None:
        """Start the node of a host, and wait for it."""
        address = self.net.addresses[number]
        words = [
            "start",
            f"--address={self.net.gateway}:{self.port}",
            f"--node-ip-address={address}",
            f"--node-name=host-{number}",
            "--num-cpus=1",
        ]
        self._start(self.net.inside(number, [ray_program(), *words, *COMMON]), f"node-{number}")

    def head(self) -> None:
        """Start the head, and wait for it."""
        self.port = free_port(self.net.gateway)
        words = [
            "start",
            "--head",
            f"--port={self.port}",
            f"--node-ip-address={self.net.gateway}",
            "--num-cpus=0",
            "--include-dashboard=false",
        ]
        self._start([ray_program(), *words, f"--temp-dir={self.folder}", *COMMON], "head")

    def _start(self, words: Sequence[str], name: str) -> None:
        log = self.folder / f"{name}-{len(self.started)}.log"
        with log.open("wb") as out:
            process = subprocess.Popen(
                tied([str(shutil.which(words[0])), *words[1:]], os.getpid()), env={**ray_environment(), **QUICK, **self._own},
                stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
            )  # fmt: skip
        self.started.append(process)
        until = time.monotonic() + PATIENCE
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None and time.monotonic() < until, f"{name}: {log.read_text()}"
            time.sleep(0.1)


@contextmanager
def ray_of_hosts(net: Hosts) -> Iterator[RayOfHosts]:
    """Start the head and a node on each host; all of it ends with this context."""
    folder = Path(tempfile.mkdtemp(prefix="vrh-", dir="/tmp"))  # short: sockets have short paths
    made = RayOfHosts(net, folder)
    with ExitStack() as undo:
        undo.callback(shutil.rmtree, folder, ignore_errors=True)
        undo.callback(_end, made)
        made.head()
        for number in range(len(net.names)):
            made.node(number)
        yield made


def _end(made: RayOfHosts) -> None:
    for number in range(len(made.net.names)):
        made.net.kill(number)
    for process in reversed(made.started):
        process.terminate()
    for process in made.started:
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
