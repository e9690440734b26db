"""Hosts on one machine: network namespaces with addresses, names, process tables and sshd of their own, joined by a bridge.

What they share is the disk, as hosts of a cluster share a network file system. It needs root. Whoever dies with it open leaves no process:
all are tied to this one's life, and a host's processes end with its first. What stays of the network is removed by the next run.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from cluster.supervise.processes import command_line
from tests.helpers.tools import lacking

NEEDED = {"ip": "iproute2", "sshd": "openssh-server", "ssh": "openssh-client", "unshare": "util-linux", "setpriv": "util-linux"}
"""Programs, and their Debian packages."""
_SBIN = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"


@dataclass
class Hosts:
    """Some hosts; this process stands beside them, on the bridge."""

    folder: Path
    """Keys, settings and logs of ssh."""
    bridge: str
    gateway: str
    """Address of this process on the bridge."""
    names: list[str] = field(default_factory=list)
    addresses: list[str] = field(default_factory=list)
    inits: list[int] = field(default_factory=list)
    """The process of each host that all its others end with."""

    @property
    def env(self) -> dict[str, str]:
        """An environment whose `ssh` knows the keys, and whose ranks know their network card."""
        path = f"{self.folder / 'bin'}{os.pathsep}{_SBIN}"
        return {**os.environ, "PATH": path, "GLOO_SOCKET_IFNAME": "eth0"}

    def hostfile(self, slots: int = 1) -> Path:
        """Write a hostfile of them all."""
        path = self.folder / "hosts"
        path.write_text("".join(f"{address} slots={slots}\n" for address in self.addresses))
        return path

    def known(self) -> Path:
        """Write a file of their names, as in /etc/hosts."""
        path = self.folder / "etc-hosts"
        lines = [f"{address} host-{number}" for number, address in enumerate(self.addresses)]
        path.write_text("\n".join(("127.0.0.1 localhost", *lines)) + "\n")
        return path

    def cut(self, number: int) -> None:
        """Cut a host off: packets to and from it go nowhere."""
        _call("ip", "link", "set", f"{self.bridge}p{number}", "down")

    def join(self, number: int) -> None:
        """Undo a cut."""
        _call("ip", "link", "set", f"{self.bridge}p{number}", "up")

    def inside(self, number: int, words: Sequence[str]) -> list[str]:
        """The command that runs `words` on a host as its console would, whatever its link is."""
        return ["nsenter", "--target", str(self.inits[number]), "--net", "--uts", "--pid", "--mount", "--", *words]

    def processes(self, number: int) -> list[str]:
        """Command lines of what runs on a host, without its sshd."""
        found = []
        for process in self._running(number):
            with contextlib.suppress(psutil.NoSuchProcess):
                found.append(" ".join(command_line(process)))
        return found

    def kill(self, number: int) -> None:
        """Kill what runs on a host, all but its sshd."""
        doomed = list(self._running(number))
        for process in doomed:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        psutil.wait_procs(doomed, timeout=30)

    def _running(self, number: int) -> Iterator[psutil.Process]:
        words = ["ip", "netns", "pids", self.names[number]]
        pids = subprocess.run(words, env=_env(), capture_output=True, text=True, check=True).stdout
        for pid in map(int, pids.split()):
            with contextlib.suppress(psutil.NoSuchProcess):
                process = psutil.Process(pid)
                if process.status() != psutil.STATUS_ZOMBIE and not {"sshd", "unshare"} & {process.name()}:
                    yield process


def _env() -> dict[str, str]:
    return {**os.environ, "PATH": _SBIN}


def _call(*words: str) -> None:
    done = subprocess.run(words, env=_env(), capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"


def _sweep() -> None:
    """Remove the network of runs that were killed: the number in a name is its process."""
    for kind, words in (("netns", ["ip", "netns", "list"]), ("link", ["ip", "-br", "link"])):
        listed = subprocess.run(words, env=_env(), capture_output=True, text=True, check=True).stdout
        for name in (line.split()[0].split("@")[0] for line in listed.splitlines() if line.strip()):
            owner = name.removeprefix("vh").partition("p")[0].partition("n")[0]
            if name.startswith("vh") and owner.isdigit() and not psutil.pid_exists(int(owner)):
                subprocess.run(["ip", kind, "del", name], env=_env(), capture_output=True, check=False)


def _free_subnet() -> str:
    taken = subprocess.run(["ip", "-4", "-o", "addr"], env=_env(), capture_output=True, text=True, check=True).stdout
    for number in range(50 * 200):
        at = os.getpid() + number
        subnet = f"10.{200 + at // 200 % 50}.{at % 200}"
        if f" {subnet}." not in taken:
            return subnet
    raise AssertionError("no free network")


def _ssh(folder: Path) -> None:
    """Write keys and settings, and an `ssh` that uses them."""
    _call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / "key"))
    shutil.copy(folder / "key.pub", folder / "authorized")
    (folder / "sshd.conf").write_text(
        f"HostKey {folder}/key\nAuthorizedKeysFile {folder}/authorized\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
    )
    (folder / "ssh.conf").write_text(
        f"IdentityFile {folder}/key\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile {folder}/known\nLogLevel ERROR\n"
    )
    (folder / "bin").mkdir()
    (folder / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh", path=_SBIN)} -F {folder}/ssh.conf "$@"\n')
    (folder / "bin/ssh").chmod(0o755)


@contextmanager
def several(count: int, folder: Path) -> Iterator[Hosts]:
    """Make hosts, and take them away, whatever happens."""
    missing = [name for name in NEEDED if shutil.which(name, path=_SBIN) is None]
    if missing:
        lacking(missing[0], " ".join(sorted({NEEDED[name] for name in missing})))
    if os.geteuid() != 0:
        lacking("the right to make network namespaces (root)", "nothing; run the tests as root")
    folder.mkdir(parents=True)
    _sweep()
    subnet = _free_subnet()
    hosts = Hosts(folder, f"vh{os.getpid()}", f"{subnet}.1")
    Path("/run/sshd").mkdir(exist_ok=True)
    _ssh(folder)
    with ExitStack() as undo:
        _call("ip", "link", "add", hosts.bridge, "type", "bridge")
        undo.callback(_call, "ip", "link", "del", hosts.bridge)
        _call("ip", "addr", "add", f"{subnet}.1/24", "dev", hosts.bridge)
        _call("ip", "link", "set", hosts.bridge, "up")
        for number in range(count):
            _add(hosts, number, f"{subnet}.{11 + number}", undo)
        yield hosts


def _add(hosts: Hosts, number: int, address: str, undo: ExitStack) -> None:
    name, cable = f"{hosts.bridge}n{number}", f"{hosts.bridge}p{number}"
    _call("ip", "netns", "add", name)
    undo.callback(_call, "ip", "netns", "del", name)
    _call("ip", "link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", name)
    # The kernel takes a namespace down later than `netns del` returns: its cable must not outlive this.
    undo.callback(_call, "ip", "link", "del", cable)
    _call("ip", "link", "set", cable, "master", hosts.bridge, "up")
    for words in (("addr", "add", f"{address}/24", "dev", "eth0"), ("link", "set", "eth0", "up"), ("link", "set", "lo", "up")):
        _call("ip", "-n", name, *words)
    # The name of the host, and a process table that sshd is the first of: what it starts ends with it.
    sshd = [str(shutil.which("sshd", path=_SBIN)), "-D", "-e", "-f", str(hosts.folder / "sshd.conf")]
    started = ["sh", "-c", 'hostname "$0" && exec "$@"', f"host-{number}", *sshd]
    own = [str(shutil.which("unshare", path=_SBIN)), "--uts", "--pid", "--mount-proc", "--fork", "--kill-child", *started]
    log = hosts.folder / f"sshd-{number}.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            # SIGKILL, also when this process dies: unshare ignores SIGTERM while its child lives.
            ["setpriv", "--pdeathsig", "KILL", "ip", "netns", "exec", name, *own],
            env=_env(),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
        )
    undo.callback(server.wait)
    undo.callback(server.kill)
    until = time.monotonic() + 60
    while "Server listening on 0.0.0.0" not in log.read_text():
        assert server.poll() is None and time.monotonic() < until, f"sshd of {name}: {log.read_text()}"
        time.sleep(0.05)
    hosts.names.append(name)
    hosts.addresses.append(address)
    hosts.inits.append(psutil.Process(server.pid).children()[0].pid)


if __name__ == "__main__":  # to try things by hand: python -m tests.helpers.hosts COUNT FOLDER, then Ctrl-D
    with several(int(sys.argv[1]), Path(sys.argv[2])) as made:
        print(made, flush=True)
        sys.stdin.read()
