"""`videoar launch`: builds the `deepspeed` command of a training job, runs it and keeps it running.

In:  a Config, optionally a hostfile.
Out: the job's exit code; RUN/launch.lock while it runs.

On one machine (`local`) it runs DeepSpeed's launcher, on several (`ssh`) the same launcher on each host (`ssh_launcher.py`).
Both run `deepspeed --module MODULE -c CFG [overrides]`, and the command that is printed can be typed by hand.
"""

from __future__ import annotations

import json
import os
import secrets
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from cluster.config import ClusterConfig, Config, ConfigError, RunConfig
from cluster.launch.hostfile import Host, read_hostfile, wrong_name
from cluster.launch.ssh_launcher import ssh_command
from cluster.launch.stacks import write_stacks
from cluster.launch.supervisor import Attempt, Hooks, Policy, Supervisor, describe
from cluster.launch.watchdog import StallLimit
from cluster.metrics import last_step
from cluster.runtime import checkpoint_folders
from cluster.runtime.atomic_files import DiskFull, write_text
from cluster.runtime.exit_codes import DONE, RESTARTS, STOPPED
from cluster.runtime.file_lock import FileLock, run_holder
from cluster.runtime.ports import free_port

Via = Literal["local", "ssh"]
LAUNCH = "VIDEOAR_LAUNCH"
"""Environment variable of all processes of a launch: its token."""
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

    def command(self, port: int) -> list[str]:
        """Return the command that starts the job with the rendezvous at `port`."""
        # At its default level the launcher logs its own settings a dozen times.
        job = ["--log_level", "warning", "--no_local_rank", "--module", self.module, *self.arguments]
        if self.hostfile is None:
            # A hostfile that is not a regular file keeps DeepSpeed from reading its default, /job/hostfile.
            here = ["--hostfile", os.devnull, "--num_gpus", str(self.ranks), "--master_port", str(port)]
            return [deepspeed_program(), *here, *job]
        several = ["--hostfile", str(self.hostfile), "--master-port", str(port)]
        address = ["--master-addr", self.master_addr] if self.master_addr else []
        return [sys.executable, "-m", "cluster.launch.ssh_launcher", *several, *address, "--", *job]


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
    if hostfile is not None:
        hosts = read_hostfile(hostfile)
        wrong = wrong_name(cluster.master_addr) if cluster.master_addr else ""
        if wrong:
            raise LaunchError(f"cluster.master_addr: {wrong}")
        if shutil.which("ssh") is None:
            raise LaunchError("--via ssh needs `ssh` on this machine; install it (Debian: apt-get install openssh-client)")
        return TrainingJob(module, arguments, 0, hostfile.resolve(), hosts, cluster.master_port, cluster.master_addr)
    ranks = cluster.ranks_per_host or (accelerators() if devices is None else devices) or 1
    return TrainingJob(module, arguments, ranks, master_port=cluster.master_port)


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


def kill_command(launch: str) -> str:
    """Return the shell command that kills the ranks of the launch on a host; they outlive the ssh session that started them.

    They are known by the variable LAUNCH in their environment, which holds the launch's own token: another job, of whatever
    configuration, is not met.
    """
    has_it = f"{{ tr '\\0' '\\n' <$each/environ | grep -qx {shlex.quote(f'{LAUNCH}={launch}')}; }} 2>/dev/null"
    return f"for each in /proc/[0-9]*; do if {has_it}; then kill -KILL ${{each#/proc/}}; fi; done"


def _kill_on_hosts(job: TrainingJob, launch: str) -> None:
    def kill(host: Host) -> None:
        # Nothing is found where the ranks have already ended, and a dead host does not answer: neither is an error.
        words = ssh_command(host.name, kill_command(launch))
        subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=False)

    with ThreadPoolExecutor(max_workers=32) as pool:
        list(pool.map(kill, job.hosts))


def why_unfinished(run_folder: Path, steps: int | None, stop_after: int) -> str:
    """Return why a pre-training run is not done, or an empty string when the checkpoint of its last step is complete.

    steps: steps of all stages; None for stages in tokens, whose steps the job itself computes and writes to RUN/status.json.
    stop_after: step at which the run is to stop early; 0 runs all steps.
    """
    if steps is None:
        try:
            steps = int(json.loads((run_folder / "status.json").read_text())["steps"])
        except (OSError, ValueError, KeyError, TypeError):
            return f"{run_folder} has no status.json with the number of steps"
    last = min(stop_after or steps, steps)
    folder = run_folder / "checkpoints"
    newest = newest_step(run_folder)
    return "" if newest >= last else f"{folder} has no complete checkpoint of step {last} (newest: {newest or 'none'})"


def newest_step(run_folder: Path) -> int:
    """Return the step of the newest complete checkpoint of a run, 0 without one; contents are not read."""
    for path in checkpoint_folders.listed(run_folder / "checkpoints"):
        if not checkpoint_folders.damage(path, contents=False):
            return int(path.name.removeprefix("step-"))
    return 0


def newest_sound(run_folder: Path) -> str:
    """Return the newest checkpoint of a run that was read back now, byte for byte; an empty string if there is none."""
    for folder in checkpoint_folders.listed(run_folder / "checkpoints"):
        if not checkpoint_folders.damage(folder, workers=2):
            return folder.name
    return ""


def run(config: Config, job: TrainingJob, *, folder: Path | None = None, unfinished: Callable[[], str] | None = None) -> int:
    """Start the job, keep it running, and return its exit code (0 done, 75 stopped cleanly, 2 a bad configuration).

    folder: run folder that the job writes to, locked meanwhile (default: run.dir). unfinished: see `Supervisor.run`.
    Raises RunBusyError when another launch or job is using the folder.
    """
    cluster = config.get(ClusterConfig)
    folder = config.get(RunConfig).dir if folder is None else folder
    # Other hosts know their own devices: only a job on this machine is told to use the CPU.
    cpu = job.hostfile is None and accelerators() == 0
    stall = StallLimit(
        folder / "metrics.jsonl", cluster.stall_seconds, cluster.start_seconds, folder, cluster.heartbeat_seconds
    )
    watched = job.module == TRAIN and (stall.seconds or stall.start or stall.silence)
    policy = Policy(cluster.max_restarts, cluster.restart_wait_seconds, cluster.stop_grace_seconds, stall if watched else None)
    # No signal of this machine reaches ranks on other hosts; all ranks look for this file in the shared run folder.
    request_stop = None if job.hostfile is None else (folder / "stop").touch
    token = secrets.token_hex(8)
    kill_leftovers = None if job.hostfile is None else lambda: _kill_on_hosts(job, token)
    hooks = Hooks(
        request_stop,
        kill_leftovers,
        saved=lambda: newest_sound(folder),
        progress=lambda: newest_step(folder),
        dump_stacks=lambda processes: write_stacks(folder, processes),
    )
    supervisor = Supervisor(policy, rank_module=job.module, hooks=hooks, holds_signals=job.module == TRAIN)

    def attempt(restarts: int) -> Attempt:
        return Attempt(job.command(job.master_port or free_port()), environment(restarts, cpu=cpu, launch=token))

    with run_lock(folder):
        if job.hostfile is not None:
            # Every host reads the hostfile, and the run folder is what they share.
            shared = folder.resolve() / "hostfile"
            write_text(shared, "".join(f"{host.name} slots={host.slots}\n" for host in job.hosts))
            job = replace(job, hostfile=shared)
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
        code = supervisor.run(attempt, unfinished)
        if code not in (DONE, STOPPED):
            mark_ended(folder, code)
        return code


def mark_ended(folder: Path, code: int) -> None:
    """Change RUN/status.json from running to failed for a job whose rank 0 could not (it was killed)."""
    path = folder / "status.json"
    try:
        plain = json.loads(path.read_text())
        if plain["state"] == "running" and not run_holder(folder):
            step = max(int(plain["step"]), last_step(folder / "metrics.jsonl"))
            write_text(path, json.dumps({**plain, "state": "failed", "step": step, "line": describe(code)}) + "\n")
    except (OSError, ValueError, KeyError, TypeError, DiskFull):
        return  # the launch has said it already
