"""The part of `videoar preflight` that looks at several hosts: each by itself, and whether they are alike and see each other.

In:  a hostfile, a Slurm allocation or a Ray cluster, the configuration's file, the folders that they must share. Out: findings.

Each host is asked as ranks are started on it: over ssh, by srun or through Ray, in this folder, by this Python, with the environment that ranks
would get.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cluster.config import ConfigError
from cluster.hosts.environment import start_command, start_input
from cluster.hosts.hostfile import Host, allocated_hosts, read_hostfile
from cluster.hosts.ssh_launcher import HOST_SECONDS as CONNECT_SECONDS
from cluster.hosts.ssh_launcher import REACHES
from cluster.runtime.job_protocol import UNREACHABLE
from cluster.runtime.ports import free_port

CLOCK_SECONDS = 2.0
"""Largest difference between the clocks of two hosts; log lines are compared by time."""
HOST_SECONDS = 120.0
"""Time limit of one host's answer; most of it is loading torch and measuring data types."""


Via = Literal["ssh", "slurm", "ray"]
Run = Callable[[Host, str, bytes, float], "subprocess.CompletedProcess[bytes]"]
"""Runs a shell command on a host with its standard input; raises TimeoutExpired after some seconds, ConfigError where it cannot."""


@dataclass(frozen=True)
class Finding:
    """Result of one check of `videoar preflight`."""

    check: str
    ok: bool
    found: str
    fix: str = ""
    """What to do when it is not ok; empty where `found` says so already."""


@dataclass(frozen=True)
class Answer:
    """What a host answered, or why it did not."""

    host: Host
    facts: Mapping[str, Any]
    problem: str = ""
    fix: str = ""
    clock: float = 0.0
    """Seconds by which the host's clock is off at least."""


@dataclass(frozen=True)
class _Party:
    """The hosts of a job, how they are asked, and where the others reach the first one."""

    hosts: Sequence[Host]
    run: Run
    address: str
    via: Via


def _party(via: Via, hostfile: Path | None, ranks: int, address: str) -> _Party:
    """Return the hosts of a job. ranks: per node of a Ray cluster. Raises ValueError."""
    if via == "ray":
        from cluster.hosts import ray_nodes

        ray_nodes.join()
        live = ray_nodes.nodes()
        hosts = ray_nodes.hosts_of(live, ranks)
        return _Party(
            hosts, ray_nodes.complete, address or next(node.address for node in live if node.name == hosts[0].name), via
        )
    hosts = read_hostfile(hostfile) if hostfile else allocated_hosts(os.environ)
    reach = REACHES[via]

    def run(host: Host, command: str, given: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
        words = reach(host.name, command, CONNECT_SECONDS)
        return subprocess.run(words, input=given, capture_output=True, timeout=seconds, check=False)

    return _Party(hosts, run, address or hosts[0].name, via)


def check_hosts(
    hostfile: Path | None, config: Path, folders: Sequence[Path], address: str = "", *, via: Via = "ssh", ranks: int = 0
) -> Iterator[Finding]:
    """Yield the findings on the hosts of a hostfile, of this Slurm allocation, or on the nodes of a Ray cluster.

    address: where the other hosts reach the first one (cluster.master_addr). ranks: per node of a Ray cluster (cluster.ranks_per_host).
    """
    try:
        party = _party(via, hostfile, ranks, address)
    except ValueError as error:  # ConfigError is one
        yield Finding("hostfile" if hostfile else f"--via {via}", False, str(error))
        return
    if hostfile and shutil.which("ssh") is None:
        yield Finding("hostfile", False, "no ssh on this machine", "apt-get install openssh-client")
        return
    with _marked(folders[0]) as (mark, token), ThreadPoolExecutor(max_workers=64) as pool:
        asked = {"config": str(config), "folders": [str(folder.absolute()) for folder in folders], "mark": str(mark)}
        answers = list(pool.map(lambda host: _ask(host, asked, party), party.hosts))
    for answer in answers:
        yield _alone(answer)
    known = [answer for answer in answers if answer.facts]
    if len(known) > 1:
        yield from _alike(known)
    for answer in known:
        if answer.facts["mark"] != token:
            found = f"{answer.host.name} does not see what this machine writes to {folders[0]}"
            yield Finding("shared folder", False, found, "mount the same folder at the same path on all hosts")
    if known and all(answer.facts["mark"] == token for answer in known):
        yield Finding("shared folder", True, f"{folders[0]} is one on {len(known)} host(s)")
    if len(known) > 1:
        yield _reduce([answer.host for answer in known], party)


@contextlib.contextmanager
def _marked(folder: Path) -> Iterator[tuple[Path, str]]:
    """Write a file with a token where `folder` is, or will be, while this is open."""
    there, token = folder.absolute(), secrets.token_hex(8)
    while not there.exists():
        there = there.parent
    mark = there / f".videoar-preflight-{token}"
    with contextlib.suppress(OSError):  # the folder's own finding says that it cannot be written
        mark.write_text(token)
    try:
        yield mark, token
    finally:
        mark.unlink(missing_ok=True)


def _ask(host: Host, asked: Mapping[str, Any], party: _Party, seconds: float = HOST_SECONDS) -> Answer:
    words = [sys.executable, "-m", "cluster.launch.host_facts", json.dumps(asked)]
    began = time.time()
    try:
        done = party.run(host, start_command(Path.cwd()), start_input(words, os.environ), seconds)
    except subprocess.TimeoutExpired:
        return Answer(host, {}, f"no answer in {seconds:g} s", "is it up, and is it busy?")
    except ConfigError as error:
        return Answer(host, {}, str(error), "see `ray status`; start its node again")
    ended, said = time.time(), done.stderr.decode(errors="replace").strip().splitlines() or ["no error message"]
    if done.returncode == UNREACHABLE and party.via == "ssh":
        return Answer(host, {}, f"ssh: {said[-1]}", f"make `ssh {host.name} true` work without a password")
    if done.returncode:
        fix = f"install the project with {sys.executable} at the same path on every host, and share {Path.cwd()}"
        return Answer(host, {}, said[-1], fix)
    found = json.loads(done.stdout.decode().strip().splitlines()[-1])
    return Answer(host, found, clock=max(began - found.get("time", began), found.get("time", ended) - ended, 0.0))


def _alone(answer: Answer) -> Finding:
    name, facts = f"host {answer.host.name}", answer.facts
    if not facts:
        return Finding(name, False, answer.problem, answer.fix)
    if answer.clock > CLOCK_SECONDS:
        return Finding(name, False, f"its clock is {answer.clock:.0f} s off", "start an NTP client on it")
    if facts["gpus"] and answer.host.slots > len(facts["gpus"]):
        return Finding(
            name, False, f"{answer.host.slots} slots, but {len(facts['gpus'])} GPU(s)", "lower its slots in the hostfile"
        )
    unwritable = [folder for folder, free in facts["free_gb"].items() if free < 0]
    if unwritable:
        return Finding(name, False, f"{unwritable[0]} is not writable there", "change its permissions")
    devices = f"{len(facts['gpus'])} x {facts['gpus'][0]}" if facts["gpus"] else "no GPU"
    free = min(facts["free_gb"].values(), default=0.0)
    found = f"{answer.host.slots} slot(s), {devices}, {facts['memory_gb']:g} GB memory free, {free:g} GB disk free; {facts['dtype']}"
    return Finding(name, True, found)


def _alike(answers: Sequence[Answer]) -> Iterator[Finding]:
    first = answers[0]
    checked = (
        ("code", "update the clone on all hosts"),
        ("configuration", "copy it, or share its folder"),
        ("python", "make setup"),
    )
    for what, fix in checked:
        other = [a for a in answers if a.facts[what] != first.facts[what]]
        found = f"{first.facts[what]} on all {len(answers)} hosts"
        if other:
            found = f"{first.facts[what]} on {first.host.name}, {other[0].facts[what]} on {other[0].host.name}"
        yield Finding(f"hosts' {what}", not other, found, fix)
    wrong = [
        f"{name} {version} on {first.host.name}, {answer.facts['packages'][name]} on {answer.host.name}"
        for name, version in first.facts["packages"].items()
        for answer in answers
        if answer.facts["packages"][name] != version
    ]
    yield Finding(
        "hosts' packages", not wrong, "; ".join(wrong[:3]) or f"equal on all {len(answers)} hosts", "run `make setup` there"
    )


def _reduce(hosts: Sequence[Host], party: _Party) -> Finding:
    """Let one process a host meet at the first one, as the ranks will."""
    port, where = free_port(), party.address
    asked = [{"reduce": {"rank": r, "world": len(hosts), "port": port, "address": where}} for r in range(len(hosts))]
    with ThreadPoolExecutor(max_workers=len(hosts)) as pool:
        answers = list(pool.map(_ask, hosts, asked, [party] * len(hosts)))
    failed = [answer for answer in answers if not answer.facts]
    if failed:
        fix = f"can they reach {where}? set cluster.master_addr, GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME, or open the firewall"
        return Finding("all-reduce", False, f"{failed[0].host.name}: {failed[0].problem}", fix)
    right = all(answer.facts["sum"] == sum(range(len(hosts))) for answer in answers)
    speed = min(answer.facts["gb_per_second"] for answer in answers)
    return Finding(
        "all-reduce", right, f"{len(hosts)} hosts, 64 MiB: {speed:.2f} GB/s", "the sums differ: check the network cards"
    )
