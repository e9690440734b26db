"""A Ray cluster of two hosts on this machine: a head and a second node, each with an address and processes of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from cluster.launch.ray_head import RayHead, ray_environment, ray_program
from cluster.runtime.ports import free_ports
from cluster.supervise.processes import tied

SECOND = "127.0.0.3"


@dataclass
class SecondHost:
    """The second node: `ray start --block` and all that it has started."""

    process: subprocess.Popen[bytes]
    family: dict[int, psutil.Process]

    def processes(self) -> list[psutil.Process]:
        """Return its processes that still live, the workers of its raylet among them."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for each in psutil.Process(self.process.pid).children(recursive=True):
                self.family[each.pid] = each
        return [each for each in self.family.values() if each.is_running()]

    def die(self) -> None:
        """Kill all of it with SIGKILL, as when the host loses power."""
        doomed = self.processes()
        self.process.kill()
        for each in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait()
        psutil.wait_procs(doomed, timeout=30)


@contextlib.contextmanager
def second_host(head: RayHead, *, cpus: int = 1) -> Iterator[SecondHost]:
    """Join a second node to a running head; it ends with this context, and with this process."""
    folder = Path(tempfile.mkdtemp(prefix="r2-", dir="/tmp"))  # short: sockets have short paths
    node, objects, agent, agent_grpc, runtime, metrics = free_ports(6, "0.0.0.0")
    command = [
        *(ray_program(), "start", f"--address={head.address}", "--block", "--disable-usage-stats"),
        *(f"--node-ip-address={SECOND}", f"--num-cpus={cpus}", f"--object-store-memory={head.object_store}"),
        *(f"--node-manager-port={node}", f"--object-manager-port={objects}", f"--dashboard-agent-listen-port={agent}"),
        *(
            f"--dashboard-agent-grpc-port={agent_grpc}",
            f"--runtime-env-agent-port={runtime}",
            f"--metrics-export-port={metrics}",
        ),
        *("--min-worker-port=0", "--max-worker-port=0"),
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            tied(command, os.getpid()), env={**ray_environment(), **head.environment, "TMPDIR": str(folder)},
            stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
        )  # fmt: skip
    host = SecondHost(process, {})
    try:
        while "Ray runtime started" not in (folder / "log").read_text():
            host.processes()
            assert process.poll() is None, (folder / "log").read_text()
            time.sleep(0.1)
        yield host
    finally:
        host.die()
        shutil.rmtree(folder, ignore_errors=True)
