"""`videoar launch`: builds the `deepspeed` command of a training job, runs it and keeps it running.

In:  a Config, optionally a hostfile.
Out: the job's exit code; RUN/launch.lock while it runs.

On one machine (`local`) it runs DeepSpeed's launcher, on several the same launcher on each host, over ssh, by srun or through Ray
(cluster/hosts). All run `--module MODULE -c CFG [overrides]`, and the command that is printed can be typed by hand.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cluster.config import ClusterConfig, Config, ConfigError, RunConfig
from cluster.hosts.hostfile import Host, allocated_hosts, read_hostfile, wrong_name
from cluster.hosts.roster import MENDS, Roster, kill_command, on_hosts
from cluster.hosts.ssh_launcher import HOST_SECONDS, REACHES
from cluster.runtime.atomic_files import write_text
from cluster.runtime.file_lock import FileLock, run_holder
from cluster.runtime.job_protocol import DONE, LAUNCH, RESTARTS, STOPPED
from cluster.runtime.ports import free_port
from cluster.supervise import run_state
from cluster.supervise.stacks import write_stacks
from cluster.supervise.supervisor import Attempt, Hooks, Policy, Supervisor, say
from cluster.supervise.watchdog import StallLimit

Via = Literal["local", "ssh", "slurm", "ray"]
FAILED_HOST = "failed-host"
"""File of RUN with the name of the host that was the first to fail in the last start over ssh."""
TRAIN = "pretrain.train"
"""Module of a rank of pre-training."""


class LaunchError(ConfigError):
    """A job that cannot be started as requested; the message gives the reason and the fix."""


class RunBusyError(RuntimeError):
    """Another launch or job is using the run folder."""


@dataclass(frozen=True)
class TrainingJob:
    """What to run, on which hosts, with how many ranks."""

    module: str
    """Python module that each rank runs, such as pretrain.train."""
    arguments: tuple[str, ...]
    """Its arguments: -c CFG and the overrides."""
    ranks: int
    """Ranks on this machine; 0 with a hostfile, which sets them per host."""
    hostfile: Path | None = None
    """Hostfile, for a job over ssh."""
    hosts: tuple[Host, ...] = ()
    """Hosts of the hostfile."""
    master_port: int = 0
    """Rendezvous port; 0 picks a free one at each start."""
    master_addr: str = ""
    """Address at which the other hosts reach the first one; empty: its name in the hostfile."""
    host_seconds: float = HOST_SECONDS
    """Seconds after which a host that does not answer is given up."""
    via: Via = "local"
    """How the hosts are reached."""

    def command(self, port: int) -> list[str]:
        """Return the command that starts the job with the rendezvous at `port`."""
        # It logs its settings a dozen times, and each exit code other than 0, also that of a clean stop, as an error.
        job = ["--log_level", "critical", "--no_local_rank", "--module", self.module, *self.arguments]
        if self.hostfile is None:
            # A hostfile that is not a regular file keeps DeepSpeed from reading its default, /job/hostfile.
            here = ["--hostfile", os.devnull, "--num_gpus", str(self.ranks), "--master_port", str(port)]
            return [deepspeed_program(), *here, *job]
        failed = str(self.hostfile.with_name(FAILED_HOST))
        several = ["--hostfile", str(self.hostfile), "--master-port", str(port), "--failed", failed]
        several += ["--host-seconds", f"{self.host_seconds:g}"]
        if self.via == "slurm":
            several += ["--via", "slurm"]
        address = ["--master-addr", self.master_addr] if self.master_addr else []
        return [
            sys.executable,
            "-m",
            f"cluster.hosts.{'ray' if self.via == 'ray' else 'ssh'}_launcher",
            *several,
            *address,
            "--",
            *job,
        ]

    def on_hosts(self, hosts: Sequence[Host], command: str) -> list[str]:
        """Run a shell command on some hosts; returns why it failed on each, or an empty string."""
        if self.via == "ray":
            from cluster.hosts.ray_nodes import on_nodes

            return on_nodes(hosts, command, self.host_seconds)
        return on_hosts(hosts, command, self.host_seconds, REACHES[self.via])


def deepspeed_program() -> str:
    """Return the path of this Python's `deepspeed` command. Raises LaunchError when it is missing."""
    beside = Path(sys.executable).with_name("deepspeed")
    if beside.exists():
        return str(beside)
    found = shutil.which("deepspeed")
    if found is None:
        raise LaunchError(f"no `deepspeed` command beside {sys.executable}; run `make setup`")
    return found


def accelerators() -> int:
    """Return how many GPUs torch can use on this machine; 0 without a GPU, or with DS_ACCELERATOR=cpu."""
    if os.environ.get("DS_ACCELERATOR") == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


def training_job(
    config: Config,
    module: str = TRAIN,
    *,
    overrides: Sequence[str] = (),
    via: Via | None = None,
    hostfile: Path | None = None,
    subcommand: Sequence[str] = (),
    devices: int | None = None,
) -> TrainingJob:
    """Return the job that runs `module` with this configuration.

    via: None is ssh with a hostfile and local without. subcommand: arguments before `-c`. devices: GPUs of this machine (default:
    what torch finds).
    Raises LaunchError or HostfileError for a job that cannot be started.
    """
    cluster = config.get(ClusterConfig)
    arguments = (*subcommand, "-c", str(config.source.resolve()), *overrides)
    if via == "ssh" and hostfile is None:
        raise LaunchError("--via ssh needs --hostfile FILE with one line `HOST slots=N` per host")
    if via == "local" and hostfile is not None:
        raise LaunchError("--via local takes no --hostfile; omit one of the two")
    wrong = wrong_name(cluster.master_addr) if cluster.master_addr else ""
    if wrong and (via == "slurm" or hostfile is not None):
        raise LaunchError(f"cluster.master_addr: {wrong}")
    if via in ("slurm", "ray") and hostfile is not None:
        raise LaunchError(f"--via {via} takes no --hostfile: it knows its nodes; omit one of the two")
    several = (cluster.master_port, cluster.master_addr, cluster.host_seconds)
    if via == "slurm":
        hosts = allocated_hosts(os.environ, cluster.ranks_per_host)
        each_start = config.get(RunConfig).dir.resolve() / "hostfile"  # written by each start
        return TrainingJob(module, arguments, 0, each_start, hosts, *several, via)
    if via == "ray":
        return _ray_job(config, module, arguments)
    if hostfile is not None:
        hosts = read_hostfile(hostfile)
        if shutil.which("ssh") is None:
            raise LaunchError("--via ssh needs `ssh` on this machine; install it (Debian: apt-get install openssh-client)")
        return TrainingJob(module, arguments, 0, hostfile.resolve(), hosts, *several, "ssh")
    ranks = cluster.ranks_per_host or (accelerators() if devices is None else devices) or 1
    return TrainingJob(module, arguments, ranks, master_port=cluster.master_port)


def _ray_job(config: Config, module: str, arguments: tuple[str, ...]) -> TrainingJob:
    from cluster.hosts.ray_nodes import hosts_of, join, nodes

    cluster = config.get(ClusterConfig)
    join()
    hosts = hosts_of(nodes(), cluster.ranks_per_host)
    say(f"the Ray cluster has {len(hosts)} node(s) for ranks: {', '.join(f'{host.name} ({host.slots})' for host in hosts)}")
    shared = config.get(RunConfig).dir.resolve() / "hostfile"
    return TrainingJob(
        module, arguments, 0, shared, hosts, cluster.master_port, cluster.master_addr, cluster.host_seconds, "ray"
    )


def environment(restarts: int, *, cpu: bool, launch: str = "") -> dict[str, str]:
    """Return variables to add to the launcher's environment: the CPU accelerator if wanted, the number of restarts, the launch's token."""
    added = {RESTARTS: str(restarts), "PYTHONUNBUFFERED": "1", LAUNCH: launch}
    if cpu:
        added["DS_ACCELERATOR"] = "cpu"
    return added


def run_lock(folder: Path) -> FileLock:
    """Return the lock RUN/launch.lock, which keeps two launches out of one run folder; entering it raises RunBusyError if held."""
    return FileLock(
        folder / "launch.lock",
        lambda holder: RunBusyError(
            f"{folder}: another launch is using this run folder ({holder}); wait for it, stop it, or set run.dir to another folder"
        ),
    )


def _policy(cluster: ClusterConfig, job: TrainingJob, folder: Path) -> Policy:
    stall = StallLimit(
        folder / "metrics.jsonl", cluster.stall_seconds, cluster.start_seconds, folder, cluster.heartbeat_seconds
    )
    watched = job.module == TRAIN and (stall.seconds or stall.start or stall.silence)
    return Policy(cluster.max_restarts, cluster.restart_wait_seconds, cluster.stop_grace_seconds, stall if watched else None)


class _Launch:
    """One launch of a job: its token, its hosts, its supervisor."""

    def __init__(self, config: Config, job: TrainingJob, folder: Path, checkpoints: Path) -> None:
        self.job, self.folder, self.cluster = job, folder, config.get(ClusterConfig)
        self.token = secrets.token_hex(8)
        # Other hosts know their own devices: only a job on this machine is told to use the CPU.
        self.cpu = job.hostfile is None and accelerators() == 0
        several = job.hostfile is not None
        hooks = Hooks(
            # No signal of this machine reaches ranks on other hosts; all ranks look for this file in the shared run folder.
            request_stop=(folder / "stop").touch if several else None,
            kill_leftovers=self.kill if several else None,
            saved=lambda: run_state.newest_sound(checkpoints),
            progress=lambda: run_state.newest_step(checkpoints),
            dump_stacks=lambda processes: write_stacks(folder, processes),
            around=self.around if several else None,
        )
        self.supervisor = Supervisor(
            _policy(self.cluster, job, folder), hooks=hooks, rank_module=job.module, holds_signals=job.module == TRAIN
        )
        self.roster = Roster(
            job.hosts, self.cluster.min_hosts, self.cluster.host_rest_seconds,
            lambda hosts, clear: job.on_hosts(hosts, kill_command(self.token) if clear else "true"), say,
            self.cluster.host_ask_seconds, MENDS.get(job.via, ""),
        )  # fmt: skip

    def attempt(self, restarts: int) -> Attempt | None:
        """Return what the next start runs; None when the job is to stop before there are hosts for it."""
        job = self.job
        if job.hostfile is not None:
            failed = self.folder / FAILED_HOST
            self.roster.failed(failed.read_text().strip() if failed.exists() else "")
            failed.unlink(missing_ok=True)
            hosts = self.roster.muster(self.supervisor.wait)
            if not hosts:
                return None
            # Every host reads the hostfile, and the run folder is what they share.
            shared = self.folder.resolve() / "hostfile"
            write_text(shared, "".join(f"{host.name} slots={host.slots}\n" for host in hosts))
            address = job.master_addr if hosts[0] == job.hosts[0] else ""
            job = replace(job, hostfile=shared, hosts=hosts, master_addr=address)
        run_state.write_owner(self.folder, self.token)
        return Attempt(job.command(job.master_port or free_port()), environment(restarts, cpu=self.cpu, launch=self.token))

    def around(self) -> contextlib.AbstractContextManager[None]:
        """Watch for hosts that come back while a start runs."""
        return self.roster.watching(lambda names: self.supervisor.renew(f"{names} answers again"))

    def kill(self, launch: str = "") -> None:
        """Kill the ranks of this launch, or of another one, on all hosts."""
        command = kill_command(launch or self.token)
        if self.job.hostfile is None:
            subprocess.run(["sh", "-c", command], check=False)
        else:
            self.job.on_hosts(self.job.hosts, command)


def run(
    config: Config,
    job: TrainingJob,
    *,
    folder: Path | None = None,
    checkpoints: Path | None = None,
    unfinished: Callable[[], str] | None = None,
) -> int:
    """Start the job, keep it running, and return its exit code (0 done, 75 stopped cleanly, 2 a bad configuration).

    folder: run folder that the job writes to, locked meanwhile (default: run.dir). checkpoints: the folder of its checkpoints (default:
    FOLDER/checkpoints). unfinished: see `Supervisor.run`.
    A job whose launch was killed is taken over. Raises RunBusyError when another launch, or a job of none, is using the folder.
    """
    folder = config.get(RunConfig).dir if folder is None else folder
    launch = _Launch(config, job, folder, checkpoints or folder / "checkpoints")
    with run_lock(folder):
        before = run_state.orphan(folder) if job.module == TRAIN else ""
        if before:
            run_state.take_over(folder, launch.cluster.stop_grace_seconds, lambda: launch.kill(before), say)
        holder = run_holder(folder)
        if holder:
            raise RunBusyError(
                f"{folder}: a job that no launch supervises any more, or that was started by hand, is using this run folder ({holder}); "
                + (
                    f"`touch {folder / 'stop'}` lets it write a checkpoint and end"
                    if job.module == TRAIN
                    else "wait for it, or stop it"
                )
            )
        code = launch.supervisor.run(launch.attempt, unfinished)
        if code not in (DONE, STOPPED):
            run_state.mark_ended(folder, code)
        return code
