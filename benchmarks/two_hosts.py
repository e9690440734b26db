"""A Ray cluster of two hosts on one Linux machine: the head here, a node in a network namespace behind a cable.

Used by proof_pipeline.py (root only). The node may be cut off, killed whole and brought back. Both hosts see one file system,
as a cluster's hosts see a shared folder.
"""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil

from cluster.runtime.ports import free_port

OBJECT_STORE = 100_000_000
START_SECONDS = 300.0


def possible() -> bool:
    """Whether this process may make network namespaces."""
    return os.geteuid() == 0 and subprocess.run(["ip", "netns"], capture_output=True, check=False).returncode == 0


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


class TwoHosts:
    """The cluster; a context manager. `environment` is what a driver needs to join it."""

    def __init__(self, cpus: tuple[int, int] = (1, 1)) -> None:
        self.cpus = cpus
        tag = os.getpid() % 10_000
        self.space, self.cable = f"vah{tag}", f"vac{tag}"
        subnet = f"10.{200 + tag % 50}.{tag % 250}"
        self.addresses = (f"{subnet}.1", f"{subnet}.2")
        self.environment = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
        self.environment |= {"RAY_ADDRESS": f"{self.addresses[0]}:{free_port()}", "RAY_raylet_start_wait_time_s": "300"}
        self._undo = ExitStack()
        self._node: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> TwoHosts:
        with ExitStack() as undo:
            call("ip", "netns", "add", self.space)
            undo.callback(call, "ip", "netns", "del", self.space)
            call("ip", "link", "add", self.cable, "type", "veth", "peer", "name", "eth0", "netns", self.space)
            # The kernel takes a namespace down later than `netns del` returns: its cable must not outlive it.
            undo.callback(call, "ip", "link", "del", self.cable)
            call("ip", "addr", "add", f"{self.addresses[0]}/24", "dev", self.cable)
            call("ip", "link", "set", self.cable, "up")
            call("ip", "-n", self.space, "addr", "add", f"{self.addresses[1]}/24", "dev", "eth0")
            call("ip", "-n", self.space, "link", "set", "eth0", "up")
            call("ip", "-n", self.space, "link", "set", "lo", "up")
            self._folder = undo.enter_context(tempfile.TemporaryDirectory(prefix="v2-", dir="/tmp", ignore_cleanup_errors=True))
            self._head = self._start_head()
            undo.callback(lambda: end(self._head))
            undo.callback(self.kill)
            self._wait(1)
            self.bring_up()
            self._undo = undo.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._undo.close()

    def _start_head(self) -> subprocess.Popen[bytes]:
        port = self.environment["RAY_ADDRESS"].rpartition(":")[2]
        words = ("--head", f"--port={port}", "--include-dashboard=false", "--disable-usage-stats", f"--temp-dir={self._folder}")
        return self._ray(0, *words)

    def _ray(self, host: int, *words: str) -> subprocess.Popen[bytes]:
        inside = ["ip", "netns", "exec", self.space] if host else []
        command = [*inside, str(Path(sys.executable).with_name("ray")), "start", "--block", f"--num-cpus={self.cpus[host]}"]
        command += [f"--node-ip-address={self.addresses[host]}", f"--object-store-memory={OBJECT_STORE}"]
        command += ["--min-worker-port=0", "--max-worker-port=0", *words]
        environment = {key: value for key, value in self.environment.items() if key != "RAY_ADDRESS"}
        with (Path(self._folder) / f"host-{host}.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)

    def _wait(self, hosts: int) -> None:
        """Wait until the cluster has so many living hosts."""
        words = "import ray; ray.init(address='auto', log_to_driver=False); print(sum(n['Alive'] for n in ray.nodes()))"
        ended = time.monotonic() + START_SECONDS
        while time.monotonic() < ended:
            done = subprocess.run(
                [sys.executable, "-c", words], env=self.environment, capture_output=True, text=True, check=False
            )
            if done.returncode == 0 and int(done.stdout.split()[-1]) >= hosts:
                return
            if self._head.poll() is not None:  # Ray gives up after 30 s, which a crowded machine may need
                end(self._head)
                self._head = self._start_head()
        raise SystemExit(f"no Ray cluster of {hosts} hosts after {START_SECONDS:.0f} s: {done.stderr[-500:]}")

    def everyone(self) -> list[psutil.Process]:
        """All processes of both hosts."""
        return [*psutil.Process(self._head.pid).children(recursive=True), *self.processes()]

    def processes(self) -> list[psutil.Process]:
        """What lives in the node's namespace."""
        done = subprocess.run(["ip", "netns", "pids", self.space], capture_output=True, text=True, check=True)
        found = []
        for pid in done.stdout.split():
            try:
                found.append(psutil.Process(int(pid)))
            except psutil.NoSuchProcess:
                continue
        return found

    def cut(self) -> None:
        """Pull the cable: nobody hears of the node again, and it of nobody."""
        call("ip", "link", "set", self.cable, "down")

    def kill(self) -> None:
        """End every process of the node at once."""
        for process in self.processes():
            try:
                process.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        if self._node is not None:
            self._node.kill()
            self._node.wait()
            self._node = None

    def mend(self) -> None:
        """Start the node again where its start has failed."""
        if self._node is not None and self._node.poll() is not None:
            self.kill()
            self.bring_up()

    def bring_up(self) -> None:
        """Put the cable back and start the node anew, as a new host; returns at once."""
        call("ip", "link", "set", self.cable, "up")
        self._node = self._ray(1, f"--address={self.environment['RAY_ADDRESS']}")


def end(process: subprocess.Popen[bytes]) -> None:
    """End a `ray start` with all below it."""
    try:
        family = psutil.Process(process.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        family = []
    process.terminate()
    for child in family:
        try:
            child.kill()
        except psutil.NoSuchProcess:
            continue
    process.kill()
    process.wait()
