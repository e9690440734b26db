"""`videoar launch --hostfile` over real ssh, with network namespaces as hosts (root on Linux)."""

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from cluster.cli.tools import job_inputs
from cluster.config import load
from cluster.launch.preflight import Probes, ShardFacts, check

pytestmark = [pytest.mark.system, pytest.mark.hosts]
SUBNET = f"10.{200 + os.getpid() % 50}.{os.getpid() % 200}"
RANK = """
import os, signal, sys, time
import torch.distributed as dist, torch
from pathlib import Path
rank, restarts, run = int(os.environ["RANK"]), os.environ["VIDEOAR_RESTARTS"], Path(os.environ["VIDEOAR_RUN"])
dist.init_process_group("gloo")
total = torch.tensor([float(rank + 1)])
dist.all_reduce(total)
address = os.popen("hostname -I").read().split()[0]
os.write(1, f"rank {rank} at {address} after {restarts} restarts: sum {total.item():g}\\n".encode())
dist.barrier()
if restarts == "0" and rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
if restarts == "0":
    (run / "left").write_text(str(os.getpid()))
    signal.pause()  # as a rank whose peer is gone and whose collective does not notice
os.write(1, b"ready\\n")
flag = torch.zeros(1)
while not flag.item():
    flag[0] = float((run / "stop").exists())
    dist.all_reduce(flag)
dist.barrier()
dist.destroy_process_group()
sys.exit(75)
"""
DRIVER = """
import sys
from pathlib import Path
from cluster.config import load
from cluster.launch.launcher import run, training_job
config = load(sys.argv[1], ["cluster.restart_wait_seconds=0"])
sys.exit(run(config, training_job(config, "fake_rank", hostfile=Path(sys.argv[2]))))
"""


@dataclass
class Hosts:
    addresses: list[str]
    env: dict[str, str]
    """PATH with an ssh that knows the keys."""


def call(*words: str) -> None:
    subprocess.run(words, check=True, capture_output=True)


@pytest.fixture
def hosts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hosts]:
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin:/sbin")
    names = [f"va{os.getpid()}n{number}" for number in (1, 2)]
    bridge = f"vb{os.getpid()}"
    Path("/run/sshd").mkdir(exist_ok=True)
    call("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key"))
    (tmp_path / "authorized").write_text((tmp_path / "key.pub").read_text())
    (tmp_path / "sshd.conf").write_text(
        f"HostKey {tmp_path}/key\nAuthorizedKeysFile {tmp_path}/authorized\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nPermitRootLogin yes\nPidFile none\n"
    )
    (tmp_path / "ssh.conf").write_text(
        f"IdentityFile {tmp_path}/key\nIdentitiesOnly yes\nStrictHostKeyChecking no\nUserKnownHostsFile {tmp_path}/known\nLogLevel ERROR\n"
    )
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/ssh").write_text(f'#!/bin/sh\nexec {shutil.which("ssh")} -F {tmp_path}/ssh.conf "$@"\n')
    (tmp_path / "bin/ssh").chmod(0o755)
    with ExitStack() as undo:
        call("ip", "link", "add", bridge, "type", "bridge")
        undo.callback(call, "ip", "link", "del", bridge)
        call("ip", "addr", "add", f"{SUBNET}.1/24", "dev", bridge)
        call("ip", "link", "set", bridge, "up")
        addresses = []
        for number, name in enumerate(names, start=1):
            addresses.append(f"{SUBNET}.{10 + number}")
            call("ip", "netns", "add", name)
            undo.callback(call, "ip", "netns", "del", name)
            call("ip", "link", "add", f"{bridge}p{number}", "type", "veth", "peer", "name", "eth0", "netns", name)
            # The kernel takes a namespace down later than `netns del` returns: its cable must not outlive this fixture.
            undo.callback(call, "ip", "link", "del", f"{bridge}p{number}")
            call("ip", "link", "set", f"{bridge}p{number}", "master", bridge, "up")
            for words in (
                ("addr", "add", f"{addresses[-1]}/24", "dev", "eth0"),
                ("link", "set", "eth0", "up"),
                ("link", "set", "lo", "up"),
            ):
                call("ip", "-n", name, *words)
            server = subprocess.Popen(
                ["ip", "netns", "exec", name, str(shutil.which("sshd")), "-D", "-e", "-f", str(tmp_path / "sshd.conf")],
                stderr=subprocess.PIPE,
                text=True,
            )
            undo.callback(server.wait)
            undo.callback(server.terminate)
            assert server.stderr is not None
            assert any("Server listening on 0.0.0.0" in line for line in server.stderr)
        path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
        monkeypatch.setenv("PATH", path)
        yield Hosts(addresses, {**os.environ, "PATH": path, "GLOO_SOCKET_IFNAME": "eth0"})


def test_two_hosts_restart_after_a_dead_rank_and_stop_cleanly(hosts: Hosts, tmp_path: Path) -> None:
    run = tmp_path / "run"
    config = tmp_path / "job.yaml"
    config.write_text(f"run: {{dir: {run}}}\n")
    hostfile = tmp_path / "hosts"
    hostfile.write_text("".join(f"{address} slots=1\n" for address in hosts.addresses))
    (tmp_path / "fake_rank.py").write_text(RANK)
    env = {**hosts.env, "PYTHONPATH": str(tmp_path), "VIDEOAR_RUN": str(run), "DS_ACCELERATOR": "cpu"}
    words = [sys.executable, "-c", DRIVER, str(config), str(hostfile)]
    with subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as launch:
        assert launch.stdout is not None
        lines: list[str] = []
        for line in launch.stdout:
            lines.append(line)
            if line.endswith("ready\n") and sum(text.endswith("ready\n") for text in lines) == 2:
                launch.send_signal(signal.SIGTERM)
    text = "".join(lines)
    assert launch.returncode == 75, text
    for restarts in (0, 1):
        for rank, address in enumerate(hosts.addresses):
            assert f"rank {rank} at {address} after {restarts} restarts: sum 3" in text, text
    assert f"[{hosts.addresses[0]}] rank 0 at" in text, "each line says whose it is"
    assert "exit code 247 (SIGKILL); restart 1 of 3" in text and "asking the ranks on all hosts" in text
    left = int((run / "left").read_text())
    assert not Path(f"/proc/{left}").exists(), "the rank that waited for a dead peer must not live on"


def test_preflight_reaches_the_hosts(hosts: Hosts, tmp_path: Path) -> None:
    config = tmp_path / "job.yaml"
    config.write_text(f"run: {{dir: {tmp_path}}}\n")
    hostfile = tmp_path / "hosts"
    hostfile.write_text(f"{hosts.addresses[0]} slots=1\n{SUBNET}.99 slots=1\n")
    probes = Probes(lambda folder: "a", lambda folder: ShardFacts("a", {}), lambda: 1, lambda: "")
    loaded = load(config)
    rows = {row.check: row for row in check(loaded, job_inputs(loaded), probes, hostfile=hostfile)}
    assert rows[f"host {hosts.addresses[0]}"].ok, rows
    assert not rows[f"host {SUBNET}.99"].ok
