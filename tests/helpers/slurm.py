"""A real Slurm for the tests: munged, slurmctld and one slurmd for each of several nodes, all on this machine and in one folder."""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster.runtime.ports import free_port
from tests.helpers.tools import lacking

PROGRAMS = ("munged", "slurmctld", "slurmd", "srun", "sbatch", "scontrol", "squeue")
CONF = """
ClusterName=videoar
SlurmctldHost=localhost(127.0.0.1)
SlurmctldPort={control}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
GresTypes=gpu
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerType=sched/builtin
SchedulerParameters=batch_sched_delay=0,sched_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
KillWait=10
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 DefMemPerNode=64
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF
"""
NODE = "NodeName={name} NodeHostname=localhost NodeAddr=127.0.0.1 Port={port} CPUs=1 RealMemory=512 Gres=gpu:1 State=UNKNOWN"


@dataclass(frozen=True)
class Slurm:
    """A running cluster: its nodes, and the environment in which Slurm's commands find it."""

    nodes: tuple[str, ...]
    env: Mapping[str, str]
    folder: Path

    def call(self, *words: str, **more: str) -> str:
        """Run one of Slurm's commands; returns what it prints."""
        done = subprocess.run(words, env={**self.env, **more}, text=True, capture_output=True, check=False, cwd=self.folder)
        assert done.returncode == 0, f"{' '.join(words)}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def job(self, number: str) -> dict[str, str]:
        """Return what `scontrol show job` says of a job."""
        return dict(word.split("=", 1) for word in self.call("scontrol", "-o", "show", "job", number).split() if "=" in word)


@contextmanager
def slurm(folder: Path, nodes: int = 2) -> Iterator[Slurm]:
    """Start the daemons, wait until the nodes are idle, and end every process of theirs at the end, whatever happened."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    for program in PROGRAMS:
        if shutil.which(program, path=path) is None:
            lacking(program, "slurmctld slurmd slurm-client munge")
    names = tuple(f"n{number + 1}" for number in range(nodes))
    for each in ("munge", "state"):
        (folder / each).mkdir(mode=0o700)
    folder.chmod(0o755)
    (folder / "munge/key").write_bytes(secrets.token_bytes(64))
    (folder / "munge/key").chmod(0o600)
    lines = "\n".join(NODE.format(name=name, port=free_port()) for name in names)
    conf = folder / "slurm.conf"
    conf.write_text(CONF.format(folder=folder, control=free_port(), nodes=lines, user=getpass.getuser()))
    (folder / "gres.conf").write_text("Name=gpu File=/dev/null\n")  # a device that every machine has
    env = {**os.environ, "PATH": path, "SLURM_CONF": str(conf)}
    munge = [
        f"--{each}={folder}/munge/{each.removesuffix('-file')}"
        for each in ("key-file", "socket", "pid-file", "log-file", "seed-file")
    ]
    daemons = {
        "munged": ["munged", "--foreground", "--force", *munge],
        "slurmctld": ["slurmctld", "-D", "-c", "-f", str(conf)],
        **{f"slurmd-{name}": ["slurmd", "-D", "-N", name, "-f", str(conf)] for name in names},
    }
    with _swept(folder), ExitStack() as undo:
        for name, words in daemons.items():
            log = undo.enter_context((folder / f"{name}.log").open("w"))
            process = subprocess.Popen(words, env=env, stdout=log, stderr=log, stdin=subprocess.DEVNULL, start_new_session=True)
            undo.callback(process.wait)
            undo.callback(process.terminate)
            if name == "munged":
                until(lambda: (folder / "munge/socket").exists(), "munged listens", folder)
        cluster = Slurm(names, env, folder)
        idle = ["sinfo", "-h", "-p", "low", "-o", "%t %D"]

        def ready() -> bool:
            done = subprocess.run(idle, env=env, text=True, capture_output=True, check=False)
            return done.stdout.strip() == f"idle {nodes}"

        until(ready, "the nodes are idle", folder)
        yield cluster


def until(ready: Callable[[], bool], what: str, folder: Path, seconds: float = 120.0) -> None:
    """Wait for something, and say what the daemons wrote if it does not happen."""
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            logs = "\n".join(f"== {path.name}\n{path.read_text()[-3000:]}" for path in sorted(folder.glob("*.log")))
            raise AssertionError(f"not within {seconds:g} s: {what}\n{logs}")
        time.sleep(0.1)


@contextmanager
def _swept(folder: Path) -> Iterator[None]:
    """Kill what is left of daemons and jobs when this closes, also when this process is killed: another process waits for that."""
    words = [sys.executable, "-m", "tests.helpers.slurm", str(folder)]
    with subprocess.Popen(words, stdin=subprocess.PIPE, cwd=Path(__file__).parents[2], start_new_session=True) as sweeper:
        assert sweeper.stdin is not None
        try:
            yield
        finally:
            sweeper.stdin.close()


def sweep(folder: Path) -> None:
    """Kill all processes that have the configuration's path in their environment: daemons, steps, scripts and what they started."""
    wanted = f"SLURM_CONF={folder}/slurm.conf".encode()
    found = True
    while found:
        found = False
        for path in Path("/proc").glob("[0-9]*"):
            try:
                if int(path.name) != os.getpid() and wanted in (path / "environ").read_bytes().split(b"\0"):
                    os.kill(int(path.name), signal.SIGKILL)
                    found = True
            except OSError:
                continue
        time.sleep(0.1)


if __name__ == "__main__":
    sys.stdin.read()
    sweep(Path(sys.argv[1]))
