"""A pod of a Kubernetes job: its place among the others, and the launcher of its ranks.

In:  what the Indexed Job says (JOB_COMPLETION_INDEX) and what kubernetes/jobset-train.yaml adds (VIDEOAR_PODS, MASTER_ADDR, MASTER_PORT).
Out: the exit code of this pod's ranks.

Each pod starts its own ranks and nobody else's. Kubernetes restarts them, all pods together: JobSet's failure policy reads the exit code.
SIGTERM to one pod (a drained node) is a stop of the whole job: its ranks tell the others with the sums of a step.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cluster.config import ClusterConfig, Config, ConfigError, RunConfig
from cluster.runtime.job_protocol import RESTARTS
from cluster.supervise import run_state
from cluster.supervise.stacks import write_stacks
from cluster.supervise.supervisor import Attempt, Hooks, Policy, Supervisor
from cluster.supervise.watchdog import StallLimit

INDEX, PODS, ADDRESS, PORT = "JOB_COMPLETION_INDEX", "VIDEOAR_PODS", "MASTER_ADDR", "MASTER_PORT"


class PodError(ConfigError):
    """A variable that the job's file should set is missing or wrong; the message names it and what it should be."""


@dataclass(frozen=True)
class Pod:
    """The place of a pod in its job."""

    index: int
    count: int
    address: str
    """Name of the first pod, at which the others reach it."""
    port: int

    @staticmethod
    def of(env: Mapping[str, str]) -> Pod:
        """Read the place from the environment. Raises PodError."""
        count, index, port = _number(env, PODS, least=1), _number(env, INDEX, least=0), _number(env, PORT, least=1)
        if index >= count:
            raise PodError(f"{INDEX} is {index}, but {PODS} is {count}; set it to the job's `completions` and `parallelism`")
        if not env.get(ADDRESS):
            raise PodError(f"{ADDRESS} is not set; it is the name of the first pod, JOBSET-JOB-0-0.SUBDOMAIN")
        return Pod(index, count, env[ADDRESS], port)

    def command(self, ranks: int, hostfile: Path, words: Sequence[str]) -> list[str]:
        """Return the command of DeepSpeed's launcher in this pod; `hostfile` is written. words: the module and its arguments."""
        hostfile.write_text("".join(f"pod-{number} slots={ranks}\n" for number in range(self.count)))
        launcher = [str(Path(sys.executable).with_name("deepspeed")), "--hostfile", str(hostfile), "--no_ssh"]
        place = ["--node_rank", str(self.index), "--master_addr", self.address, "--master_port", str(self.port)]
        return [*launcher, *place, "--log_level", "critical", "--no_local_rank", "--module", *words]


def _number(env: Mapping[str, str], name: str, *, least: int) -> int:
    text = env.get(name, "")
    if not text.isascii() or not text.isdigit() or int(text) < least:
        raise PodError(
            f"--via pods runs in the pods of an Indexed Job, and {name} is {text or 'not set'}; "
            "begin with kubernetes/jobset-train.yaml (`videoar init DIR` copies it)"
        )
    return int(text)


def run(config: Config, pod: Pod, words: Sequence[str], devices: int, unfinished: Callable[[], str] | None = None) -> int:
    """Run this pod's ranks once and return their exit code (0 done, 75 stopped cleanly, 2 a configuration that cannot run).

    words: the module and its arguments. devices: GPUs of this pod, and of each other; 0: the CPU. unfinished: see `Supervisor.run`.
    """
    cluster, folder = config.get(ClusterConfig), config.get(RunConfig).dir
    stall = StallLimit(
        folder / "metrics.jsonl", cluster.stall_seconds, cluster.start_seconds, folder, cluster.heartbeat_seconds
    )
    hooks = Hooks(
        saved=lambda: run_state.newest_sound(folder / "checkpoints"),
        dump_stacks=lambda processes: write_stacks(folder, processes),
    )
    policy = Policy(0, cluster.restart_wait_seconds, cluster.stop_grace_seconds, stall)
    supervisor = Supervisor(policy, rank_module=words[0], hooks=hooks, holds_signals=True)
    with tempfile.TemporaryDirectory(prefix="videoar-pod-") as own:
        command = pod.command(cluster.ranks_per_host or devices or 1, Path(own) / "hostfile", words)
        env = {
            RESTARTS: os.environ.get(RESTARTS) or "0",
            "PYTHONUNBUFFERED": "1",
            **({} if devices else {"DS_ACCELERATOR": "cpu"}),
        }
        return supervisor.run(lambda restarts: Attempt(command, env), unfinished)
