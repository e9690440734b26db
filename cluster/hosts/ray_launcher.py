"""Runs DeepSpeed's node launcher on every node of a Ray cluster, as one job with one exit code: `ssh_launcher.py` without ssh.

In:  the same: a hostfile (of names of nodes), the rendezvous port, the module and its arguments.
Out: the output of every host, each line prefixed with the host's name; one exit code.

A placement group spreads one actor to each node and holds its devices. The launch asks each actor for output all the time; that is also the
line by which the ranks are held (tether.py): when this process ends, Ray ends its actors, and their ranks end with them.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.placement_group import placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from cluster.hosts.environment import forwarded, signal_as_exit_code
from cluster.hosts.hostfile import Host, read_hostfile
from cluster.hosts.ray_nodes import Node, environment_of_workers, join, nodes
from cluster.hosts.ssh_launcher import GRACE_SECONDS, combined_exit_code, command_line, print_lines
from cluster.hosts.tether import BEATS, tethered
from cluster.runtime.job_protocol import STOPPED, UNREACHABLE

PLACE_SECONDS = 60.0
"""Seconds within which the devices of all nodes must be free."""


def node_words(hosts: Sequence[Host], number: int, devices: Sequence[int | str], rendezvous: tuple[str, int]) -> list[str]:
    """Return the command of DeepSpeed's node launcher on host `number`, whose ranks get these devices (GPUs, or just numbers)."""
    world: dict[str, list[int | str]] = {host.name: list(range(host.slots)) for host in hosts}
    world[hosts[number].name] = list(devices)
    info = base64.urlsafe_b64encode(json.dumps(world).encode()).decode()
    launcher = [sys.executable, "-m", "deepspeed.launcher.launch", f"--world_info={info}", f"--node_rank={number}"]
    return [*launcher, f"--master_addr={rendezvous[0]}", f"--master_port={rendezvous[1]}"]


def bundle(host: Host, node: Node, *, gpu: bool) -> dict[str, float]:
    """Return the resources that the ranks of a host take."""
    return {"CPU": min(float(host.slots), node.cpus)} | ({"GPU": float(host.slots)} if gpu else {})


class NodeLauncher:
    """The actor of one node."""

    def __init__(self) -> None:
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._process: subprocess.Popen[bytes] | None = None

    def devices(self) -> list[int | str]:
        """Return the ids of the GPUs that Ray has given to this node's ranks."""
        return [int(each) if str(each).isdigit() else each for each in ray.get_gpu_ids()]

    def start(self, words: Sequence[str], env: Mapping[str, str], folder: str, seconds: float) -> None:
        """Start the ranks."""
        own = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        self._process = subprocess.Popen(
            tethered(words, seconds), env={**own, **env}, cwd=folder, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )  # fmt: skip
        threading.Thread(target=self._read, name="output", daemon=True).start()

    def _read(self) -> None:
        assert self._process is not None and self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line.removesuffix(b"\n"))
        self._lines.put(None)

    def follow(self, seconds: float) -> tuple[list[bytes], int | None]:
        """Return the lines since the last call, and the exit code if it ended; waits for them for up to `seconds`."""
        assert self._process is not None and self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write(b"\n")
            self._process.stdin.flush()
        lines: list[bytes] = []
        with contextlib.suppress(queue.Empty):
            while len(lines) < 1000:
                line = self._lines.get(timeout=0 if lines else seconds)
                if line is None:
                    return lines, signal_as_exit_code(self._process.wait())
                lines.append(line)
        return lines, None


def place(hosts: Sequence[Host], live: Mapping[str, Node]) -> list[Any]:
    """Return one actor for each host, on its node, with its devices. Raises RayError when they are not to be had in time."""
    gpu = os.environ.get("DS_ACCELERATOR") != "cpu" and all(live[host.name].gpus for host in hosts)
    bundles = [bundle(host, live[host.name], gpu=gpu) for host in hosts]
    where = [{"ray.io/node-id": live[host.name].id} for host in hosts]
    group = placement_group(bundles, strategy="STRICT_SPREAD", bundle_label_selector=where)
    ray.get(group.ready(), timeout=PLACE_SECONDS)
    actor = ray.remote(max_restarts=0, runtime_env=environment_of_workers())(NodeLauncher)
    return [
        actor.options(
            num_cpus=bundles[number]["CPU"], num_gpus=bundles[number].get("GPU", 0),
            scheduling_strategy=PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number),
        ).remote()
        for number in range(len(hosts))
    ]  # fmt: skip


def follow(hosts: Sequence[Host], actors: Sequence[Any], seconds: float, grace: float = GRACE_SECONDS) -> list[tuple[str, int]]:
    """Print what the hosts say until all have ended, or until `grace` seconds after the first failure.

    Returns the names and exit codes in the order in which they ended. A host that does not answer for `seconds` counts as lost (255).
    """
    asked = {actor.follow.remote(seconds / BEATS): (number, time.monotonic()) for number, actor in enumerate(actors)}
    ended: list[tuple[str, int]] = []
    failed_at = float("inf")
    while asked and time.monotonic() < failed_at + grace:
        done, _ = ray.wait(list(asked), num_returns=1, timeout=1.0)
        late = [ref for ref, (_, since) in asked.items() if ref not in done and time.monotonic() - since > seconds]
        for ref in (*done, *late):
            number, _ = asked.pop(ref)
            name, code = hosts[number].name, None
            try:
                if ref in late:
                    raise TimeoutError(f"no answer for {seconds:g} s")
                lines, code = ray.get(ref)
                print_lines(name, lines)
            except (RayError, TimeoutError) as error:
                print_lines(name, [f"the node is lost: {str(error).strip().splitlines()[0]}".encode()])
                code = UNREACHABLE
            if code is None:
                asked[actors[number].follow.remote(seconds / BEATS)] = (number, time.monotonic())
            else:
                ended.append((name, code))
                failed_at = min(failed_at, time.monotonic()) if code != 0 else failed_at
    return ended


def run(hosts: Sequence[Host], port: int, words: Sequence[str], *, address: str, seconds: float, failed: Path | None) -> int:
    """Start the job on all hosts and follow it to its end; returns its exit code."""
    live = {node.name: node for node in nodes()}
    lost = [host.name for host in hosts if host.name not in live]
    if lost:
        return _lost(lost[0], "not in the Ray cluster", failed)
    try:
        actors = place(hosts, live)
        devices = ray.get([actor.devices.remote() for actor in actors], timeout=PLACE_SECONDS)
        rendezvous = (address or live[hosts[0].name].address, port)
        ray.get(
            [
                actor.start.remote(
                    [*node_words(hosts, number, devices[number] or list(range(hosts[number].slots)), rendezvous), *words],
                    forwarded(os.environ), str(Path.cwd()), seconds,
                )
                for number, actor in enumerate(actors)
            ],
            timeout=PLACE_SECONDS,
        )  # fmt: skip
    except (RayError, TimeoutError) as error:
        said = str(error).strip().splitlines() or ["its nodes' devices are not free"]
        return _lost("", f"the job could not be placed within {PLACE_SECONDS:g} s: {said[-1]}", failed)
    ended = follow(hosts, actors, seconds)
    first = next((name for name, code in ended if code not in (0, STOPPED)), "")
    if first and failed is not None:
        failed.write_text(f"{first}\n")
    for actor in actors:
        ray.kill(actor)
    return combined_exit_code([code for _, code in ended])


def _lost(host: str, why: str, failed: Path | None) -> int:
    print_lines(host or "ray", [why.encode()])
    if host and failed is not None:
        failed.write_text(f"{host}\n")
    return UNREACHABLE


def main() -> int:
    """Parse the command line, run, return the exit code."""
    parser = command_line("cluster.hosts.ray_launcher", "Start DeepSpeed's node launcher on Ray's nodes.")
    given = parser.parse_args()
    hosts = read_hostfile(given.hostfile)
    words = given.words[1:] if given.words[:1] == ["--"] else given.words
    join()
    return run(hosts, given.master_port, words, address=given.master_addr, seconds=given.host_seconds, failed=given.failed)


if __name__ == "__main__":
    from cluster.hosts import ray_launcher

    sys.exit(ray_launcher.main())  # under its own name, so that the actor's class is found by it
