"""`videoar launch`: builds the `deepspeed` command of a training job, runs it and keeps it running.

In:  a Config, optionally a hostfile.
Out: exit code of the job; RUN/launch.lock while it runs.
Called by: `cluster/cli/main.py` (launch, tokenizer train), the demo, tests.

One way for one machine (`local`) and one for several (`ssh`: the same launcher on each host, `cluster/launch/ssh_launcher.py`). Both run
`deepspeed --module MODULE -c CFG [overrides]`, so that what is printed can be typed by hand.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import psutil

from cluster.config import ClusterConfig, Config, ConfigError, RunConfig
from cluster.launch.hostfile import Host, read_hostfile
from cluster.runtime.ports import free_port
from cluster.launch.processes import runs_module, words_of
from cluster.launch.ssh_launcher import ssh_command
from cluster.launch.supervisor import Attempt, Policy, Supervisor
from cluster.launch.watchdog import Watch
from cluster.runtime.file_lock import FileLock

Via = Literal["local", "ssh"]
TRAIN = "pretrain.train"
RESTARTS = "VIDEOAR_RESTARTS"
"""Environment variable that tells the job how often it was started again (metric train_restarts_total)."""


class LaunchError(ConfigError):
    """A job that cannot be started as asked; the message says why and what to do."""


class RunBusyError(RuntimeError):
    """Another launch holds the run folder."""


@dataclass(frozen=True)
class Launch:
    """One training job: what runs, where, with how many ranks."""

    module: str
    """Python module of a rank, such as pretrain.train."""
    arguments: tuple[str, ...]
    """Its arguments: -c CFG and overrides."""
    ranks: int
    """Ranks on this machine; 0 where the hostfile says it."""
    hostfile: Path | None = None
    """Hosts, for `ssh`."""
    hosts: tuple[Host, ...] = ()
    """The hostfile's content."""
    master_port: int = 0
    """Rendezvous port; 0 takes a free one at each start."""
    master_addr: str = ""
    """Address of the first host as the others reach it; empty takes its name in the hostfile."""

    def command(self, port: int) -> list[str]:
        """Return the launcher's command with the rendezvous at `port`."""
        # The launcher repeats its own settings a dozen times at its default level.
        job = ["--log_level", "warning", "--no_local_rank", "--module", self.module, *self.arguments]
        if self.hostfile is None:
            # A hostfile that is no file keeps DeepSpeed from reading its default, /job/hostfile.
            here = ["--hostfile", os.devnull, "--num_gpus", str(self.ranks), "--master_port", str(port)]
            return [deepspeed_program(), *here, *job]
        several = ["--hostfile", str(self.hostfile), "--master-port", str(port)]
        address = ["--master-addr", self.master_addr] if self.master_addr else []
        return [sys.executable, "-m", "cluster.launch.ssh_launcher", *several, *address, "--", *job]


def deepspeed_program() -> str:
    """Path of the `deepspeed` command of this Python. Raises LaunchError when it is missing."""
    beside = Path(sys.executable).with_name("deepspeed")
    if beside.exists():
        return str(beside)
    found = shutil.which("deepspeed")
    if found is None:
        raise LaunchError(f"no `deepspeed` command beside {sys.executable}; run `make setup`")
    return found


def accelerators() -> int:
    """GPUs that torch can use on this machine; 0 on a machine without, and where DS_ACCELERATOR=cpu asks for the CPU."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def plan(
    config: Config,
    module: str = TRAIN,
    *,
    overrides: Sequence[str] = (),
    via: Via | None = None,
    hostfile: Path | None = None,
    words: Sequence[str] = (),
    devices: int | None = None,
) -> Launch:
    """Work out a job. `words` go before `-c` (a subcommand of the module); `devices` is the number of GPUs here.

    Raises LaunchError or HostfileError for what cannot be started.
    """
    cluster = config.get(ClusterConfig)
    arguments = (*words, "-c", str(config.source.resolve()), *overrides)
    if via == "ssh" and hostfile is None:
        raise LaunchError("--via ssh needs --hostfile FILE with one line `HOST slots=N` for each host")
    if via == "local" and hostfile is not None:
        raise LaunchError("--via local takes no --hostfile; leave one of the two out")
    if hostfile is not None:
        hosts = read_hostfile(hostfile)
        if shutil.which("ssh") is None:
            raise LaunchError("--via ssh needs `ssh` on this machine; install it (Debian: apt-get install openssh-client)")
        return Launch(module, arguments, 0, hostfile.resolve(), hosts, cluster.master_port, cluster.master_addr)
    ranks = cluster.ranks_per_host or (accelerators() if devices is None else devices) or 1
    return Launch(module, arguments, ranks, master_port=cluster.master_port)


def environment(restarts: int, *, cpu: bool) -> dict[str, str]:
    """Additions to the launcher's environment: the CPU accelerator if asked for, the restarts so far."""
    added = {RESTARTS: str(restarts), "PYTHONUNBUFFERED": "1"}
    if cpu:
        added["DS_ACCELERATOR"] = "cpu"
    return added


def run_lock(folder: Path) -> FileLock:
    """Return the lock RUN/launch.lock, so that two launches cannot write one run folder; held, it raises RunBusyError."""
    return FileLock(
        folder / "launch.lock",
        lambda holder: RunBusyError(
            f"{folder}: {holder} is running this run; wait for it, stop it, or set run.dir to another folder"
        ),
    )


def sweep_command(job: Launch) -> str:
    """Return the shell command that kills this job's ranks on a host: they outlive the ssh session that started them."""
    text = " ".join(["m", job.module, *job.arguments])
    # The brackets keep the pattern from matching the shell that runs pkill, on whose command line it stands.
    pattern = "[-]" + re.sub(r"([][\\.^$*+?(){}|])", r"\\\1", text)
    return f"pkill -KILL -f -- {shlex.quote(pattern)}"


def _same(process: psutil.Process, job: Launch) -> bool:
    return ("-c", job.arguments[job.arguments.index("-c") + 1]) in itertools.pairwise(words_of(process))


def _sweep(job: Launch) -> None:
    def one(host: Host) -> None:
        # pkill finds nothing where the ranks have ended, and a dead host cannot be swept: neither is an error.
        words = ssh_command(host.name, sweep_command(job))
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    with ThreadPoolExecutor(max_workers=32) as pool:
        list(pool.map(one, job.hosts))


def unfinished(config: Config) -> str:
    """Return why the pre-training of `config` is not done, or an empty text when the checkpoint of its last step is whole."""
    stages = config.sections["curriculum"].stages
    run_folder = config.get(RunConfig).dir
    if all(stage.steps for stage in stages):
        total = sum(stage.steps for stage in stages)
    else:
        # Stages in tokens: the job itself works out the steps, from the shards' tokenizer, and writes them down.
        try:
            total = int(json.loads((run_folder / "status.json").read_text())["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{run_folder} holds no status.json that says how many steps there are"
    last = min(config.sections["train"].stop_after or total, total)
    folder = run_folder / "checkpoints"
    whole = sorted(int(done.parent.name.removeprefix("step-")) for done in folder.glob("step-*/DONE"))
    if whole and whole[-1] >= last:
        return ""
    return f"{folder} holds no whole checkpoint of step {last} (newest: {whole[-1] if whole else 'none'})"


def run(config: Config, job: Launch, *, folder: Path | None = None, finished: Callable[[], str] | None = None) -> int:
    """Start the job, keep it running, and return its exit code (0 done, 75 stopped cleanly, 2 bad configuration).

    folder: the run folder that the job writes, locked meanwhile (default run.dir). finished: see `Supervisor.run`.
    Raises RunBusyError when another launch holds the folder.
    """
    cluster = config.get(ClusterConfig)
    folder = config.get(RunConfig).dir if folder is None else folder
    # Other hosts know best what they have: only a job on this machine is told to use the CPU.
    cpu = job.hostfile is None and accelerators() == 0
    watch = Watch(folder / "metrics.jsonl", cluster.stall_seconds) if cluster.stall_seconds and job.module == TRAIN else None
    policy = Policy(cluster.max_restarts, cluster.restart_wait_seconds, cluster.stop_grace_seconds, watch)
    # No signal of ours reaches ranks on other hosts; all of them look for this file in the shared run folder.
    ask = None if job.hostfile is None else (folder / "stop").touch
    sweep = None if job.hostfile is None else lambda: _sweep(job)
    supervisor = Supervisor(policy, rank_module=job.module, ask=ask, sweep=sweep)

    def attempt(restarts: int) -> Attempt:
        env = environment(restarts, cpu=cpu)
        return Attempt(job.command(job.master_port or free_port()), env)

    with run_lock(folder):
        if job.hostfile is not None:
            # Every host reads it, and the run folder is what they share.
            copy = folder.resolve() / "hostfile"
            copy.write_text("".join(f"{host.name} slots={host.slots}\n" for host in job.hosts))
            job = replace(job, hostfile=copy)
        left = [process.pid for process in psutil.process_iter() if runs_module(process, job.module) and _same(process, job)]
        if left:
            raise RunBusyError(
                f"{folder}: ranks of an earlier launch still run (processes {left}); stop them with `kill {left[0]}`"
            )
        return supervisor.run(attempt, finished)
