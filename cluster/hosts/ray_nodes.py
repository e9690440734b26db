"""The nodes of a Ray cluster as the hosts of a training job: which there are, and what is done on all of them.

In:  a Ray cluster (RAY_ADDRESS, or that of the `ray job submit` this runs in). Out: `Host` records, and answers of the nodes.

A node is known by its name, which is its address where `ray start --node-name` gave it no other: one that was lost and joins again is
the same host. Nothing here needs ssh.
"""

from __future__ import annotations

import logging
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.config import ConfigError
from cluster.hosts.hostfile import Host, wrong_name
from cluster.hosts.roster import MORE_SECONDS
from cluster.runtime.ports import refusal, token_remedy


class RayClusterError(ConfigError):
    """A Ray cluster that cannot be joined, or on which no rank can run; the message gives the fix."""


@dataclass(frozen=True)
class Node:
    """A live node of the cluster."""

    name: str
    id: str
    """Ray's id; a node that joins again gets a new one."""
    address: str
    cpus: float
    gpus: int


def join() -> None:
    """Join the cluster. Raises RayClusterError when there is none."""
    if ray.is_initialized():
        return
    address = os.environ.get("RAY_ADDRESS", "auto")
    remedy = "run this on a node of it (ray start), or give it to `ray job submit`, or set RAY_ADDRESS=HOST:6379"
    if why := refusal(address):  # Ray itself asks for minutes
        raise RayClusterError(f"--via ray: cannot join a Ray cluster at {address}: {why}; {remedy}")
    try:
        ray.init(address=address, logging_level=logging.WARNING, log_to_driver=True)
    except (ConnectionError, RayError, ValueError, RuntimeError) as error:
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise RayClusterError(
            f"--via ray: cannot join a Ray cluster at {address}: {first}; {remedy}{token_remedy()}"
        ) from error


def environment_of_workers() -> dict[str, Any]:
    """Return the runtime environment with which this project is found by the workers; no secret may stand in it, Ray shows it."""
    path = os.environ.get("PYTHONPATH", "")
    return {"env_vars": {"PYTHONPATH": path}} if path else {}


def nodes() -> list[Node]:
    """Return the live nodes, the one that this runs on first, then by name.

    Raises RayClusterError where two have one name, or one has a name that is no host's.
    """
    here = ray.get_runtime_context().get_node_id()
    found = []
    for plain in ray.nodes():
        if plain["Alive"]:
            name, resources = plain.get("NodeName") or plain["NodeManagerAddress"], plain["Resources"]
            found.append(
                Node(
                    name, plain["NodeID"], plain["NodeManagerAddress"], resources.get("CPU", 0.0), int(resources.get("GPU", 0))
                )
            )
    names = [node.name for node in found]
    for name in names:
        if names.count(name) > 1:
            raise RayClusterError(
                f"--via ray: {names.count(name)} nodes are called {name}; start each with its own --node-name"
            )
        if wrong := wrong_name(name):
            raise RayClusterError(f"--via ray: the name of a node: {wrong}")
    return sorted(found, key=lambda node: (node.id != here, node.name))


def hosts_of(live: Sequence[Node], ranks: int) -> tuple[Host, ...]:
    """Return the hosts of a job: the nodes with GPUs where there are any, else those with CPUs.

    ranks: per host (cluster.ranks_per_host); 0: one per GPU, or one. Raises RayClusterError when there is no such node, or one
    has too few GPUs.
    """
    if os.environ.get("DS_ACCELERATOR") == "cpu" or not any(node.gpus for node in live):
        able = [(node, ranks or 1) for node in live if node.cpus >= 1]
    else:
        able = [(node, ranks or node.gpus) for node in live if node.gpus]
        few = [node for node, wanted in able if wanted > node.gpus]
        if few:
            raise RayClusterError(
                f"cluster.ranks_per_host is {ranks}, but node {few[0].name} has {few[0].gpus} GPU(s); lower it"
            )
    if not able:
        raise RayClusterError(
            "--via ray: no node of the cluster has a CPU for ranks; start nodes with `ray start --num-cpus=N`"
        )
    return tuple(Host(node.name, wanted, line) for line, (node, wanted) in enumerate(able, start=1))


def _run(command: str) -> str:
    done = _complete(command, b"")
    said = done.stderr.decode(errors="replace").strip().splitlines()
    return "" if done.returncode == 0 else (said or [f"exit code {done.returncode}"])[-1]


def _complete(command: str, given: bytes) -> subprocess.CompletedProcess[bytes]:
    # Ray hides the GPUs from what did not ask for any; the command is not scheduled, it looks at what is there.
    env = {key: value for key, value in os.environ.items() if (key, value) != ("CUDA_VISIBLE_DEVICES", "")}
    return subprocess.run(["sh", "-c", command], input=given, capture_output=True, env=env, check=False)


def complete(host: Host, command: str, given: bytes, seconds: float) -> subprocess.CompletedProcess[bytes]:
    """Run a shell command on the node of a host, with `given` on its standard input.

    Raises subprocess.TimeoutExpired when it takes longer, RayClusterError when the node is lost.
    """
    where = {node.name: node.id for node in nodes()}.get(host.name)
    if where is None:
        raise RayClusterError(f"{host.name} is not in the Ray cluster")
    task = ray.remote(num_cpus=0, max_retries=0, runtime_env=environment_of_workers())(_complete)
    asked = task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(where, soft=False)).remote(command, given)
    try:
        found: subprocess.CompletedProcess[bytes] = ray.get(asked, timeout=seconds)
    except ray.exceptions.GetTimeoutError as error:
        ray.cancel(asked, force=True)
        raise subprocess.TimeoutExpired(command, seconds) from error
    except RayError as error:
        raise RayClusterError(str(error).strip().splitlines()[0]) from error
    return found


def on_nodes(hosts: Sequence[Host], command: str, seconds: float) -> list[str]:
    """Run a shell command on the node of every host at once; returns why it failed there, or an empty string."""
    live = {node.name: node for node in nodes()}
    task = ray.remote(num_cpus=0, max_retries=0, runtime_env=environment_of_workers())(_run)
    asked = {
        host.name: task.options(scheduling_strategy=NodeAffinitySchedulingStrategy(live[host.name].id, soft=False)).remote(
            command
        )
        for host in hosts
        if host.name in live
    }
    end = time.monotonic() + seconds + MORE_SECONDS
    answers = []
    for host in hosts:
        if host.name not in asked:
            answers.append("not in the Ray cluster")
            continue
        try:
            answers.append(ray.get(asked[host.name], timeout=max(0.0, end - time.monotonic())))
        except TimeoutError:
            ray.cancel(asked[host.name], force=True)
            answers.append(f"no answer in {seconds + MORE_SECONDS:g} s")
        except RayError as error:
            answers.append(str(error).strip().splitlines()[0])
    return answers
