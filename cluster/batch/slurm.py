"""A Slurm allocation as hosts: their names from its list of nodes, a command on one of them by `srun`.

In:  the variables that Slurm sets in an allocation. Out: `Host` records; the words that run a shell command on a node.

No ssh between the nodes is needed. Each node has one step, in which one launcher starts the node's ranks, and short steps beside it.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping

from cluster.config import ConfigError

INHERITED = (
    "SLURM_CPUS_PER_TASK", "SLURM_DISTRIBUTION", "SLURM_EXACT", "SLURM_GPUS", "SLURM_GPUS_PER_TASK", "SLURM_MEM_PER_CPU", "SLURM_MEM_PER_GPU",
    "SLURM_MEM_PER_NODE", "SLURM_NNODES", "SLURM_NPROCS", "SLURM_NTASKS", "SLURM_NTASKS_PER_GPU", "SLURM_NTASKS_PER_NODE", "SLURM_TRES_PER_TASK",
)  # fmt: skip
"""Variables by which `srun` takes over what the whole allocation was asked for; a step on one node has its own."""
STEP = (
    "--nodes=1", "--ntasks=1",
    "--overlap",  # beside the step of the ranks: what an earlier start left is killed by another one
    "--mem=0",  # all that the job has on the node; the default of a step may be far less
    "--cpu-bind=none",  # a task is otherwise given one core, and the ranks of the node with it
    "--immediate=60",  # a node that does not answer is an error, not a wait
    "--quiet",
)  # fmt: skip


class SlurmError(ConfigError):
    """There is no allocation to run in, or Slurm's commands are missing; the message says which and how to mend it."""


def nodes(env: Mapping[str, str]) -> list[str]:
    """Return the names of the allocation's nodes, in Slurm's order. Raises SlurmError outside of an allocation."""
    listed = env.get("SLURM_JOB_NODELIST", "")
    if not env.get("SLURM_JOB_ID") or not listed:
        raise SlurmError(
            "--via slurm runs inside of an allocation, and SLURM_JOB_ID is not set; submit cluster/slurm/train.sbatch "
            "(`videoar init DIR` copies it), or begin with `salloc --nodes=N --gpus-per-node=M`"
        )
    for program in ("scontrol", "srun"):
        if shutil.which(program) is None:
            raise SlurmError(f"--via slurm needs `{program}` on this machine; load Slurm's module, or add it to PATH")
    done = subprocess.run(["scontrol", "show", "hostnames", listed], capture_output=True, text=True, check=False)
    if done.returncode or not done.stdout.split():
        raise SlurmError(f"`scontrol show hostnames {listed}` failed: {done.stderr.strip() or 'it names no node'}")
    return done.stdout.split()


def gpus_per_node(env: Mapping[str, str]) -> int:
    """Return how many GPUs the allocation has on each node; 0 if it has none."""
    return int(env.get("SLURM_GPUS_ON_NODE") or 0)


def srun_command(env: Mapping[str, str], node: str, command: str) -> list[str]:
    """Return the words that run a shell command in a step of its own on `node`; its standard input is the caller's."""
    unset = [word for name in INHERITED if name in env for word in ("-u", name)]
    gpus = [f"--gpus-per-node={gpus_per_node(env)}"] if gpus_per_node(env) else []
    return ["env", *unset, "srun", *STEP, *gpus, f"--nodelist={node}", "sh", "-c", command]
