"""`videoar preflight`: what would stop a job, found before it starts.

In:  a Config, which job it is for, a hostfile if there is one, and functions that look into tokenizer, shards and corpus.
Out: rows (what, ok or not, what was found, the mend).
Called by: `cluster/cli/main.py`, which lends the functions, since `cluster` imports no other package.

A check never stops the others: what it cannot look at is a failed row.
"""

from __future__ import annotations

import importlib.metadata
import os
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from cluster.config import ClusterConfig, Config, MetricsConfig, RunConfig
from cluster.launch.hostfile import Host, read_hostfile
from cluster.launch.launcher import accelerators, unfinished
from cluster.runtime.ports import is_free

DISTRIBUTION = "videoar-pretrain"
CLOCK_SECONDS = 2.0
"""Clocks of hosts may differ by so much; heartbeats and log lines are compared by time."""
SSH_SECONDS = 15.0
Job = Literal["tokenize", "train"]


@dataclass(frozen=True)
class Row:
    """One finding."""

    what: str
    ok: bool
    found: str
    mend: str = ""
    """What to do when it is not ok; empty where `found` says it already."""


@dataclass(frozen=True)
class ShardFacts:
    """What a SHARDS folder says of itself."""

    tokenizer: str
    """Digest of the tokenizer that made it."""
    samples: Mapping[str, int]
    """Samples of each bucket."""


@dataclass(frozen=True)
class Lookers:
    """Functions lent by the other packages; each raises ValueError or OSError with the reason and the mend."""

    tokenizer: Callable[[Path], str]
    """Digest of the tokenizer in a folder."""
    shards: Callable[[Path], ShardFacts]
    videos: Callable[[Config], int]
    """Videos of the corpus."""


def check(config: Config, look: Lookers, job: Job = "train", hostfile: Path | None = None) -> list[Row]:
    """Run every check that `job` needs."""
    rows = [*_software(), *_devices(config), *_places(config, job), *_ports(config)]
    rows += _tokenizer(config, look)
    rows += _corpus(config, look) if job == "tokenize" else [*_shards(config, look), *_checkpoint(config)]
    if hostfile is not None:
        rows += _hosts(hostfile)
    return rows


def _software() -> Iterator[Row]:
    found = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
    yield Row("python", sys.version_info[:2] == (3, 11), found, "run `make setup` with python3.11")
    wrong, seen = [], []
    # An old egg-info folder beside the sources has no METADATA; what pip installed has.
    installed = [found for found in importlib.metadata.distributions(name=DISTRIBUTION) if found.read_text("METADATA")]
    if not installed:
        wrong.append(f"{DISTRIBUTION} is not installed")
    for text in (installed[0].requires or ()) if installed else ():
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            version = importlib.metadata.version(wanted.name)
        except importlib.metadata.PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(version, prereleases=True):
            wrong.append(f"{wanted.name} {version} is not {wanted.specifier}")
        elif wanted.name in {"torch", "deepspeed", "ray"}:
            seen.append(f"{wanted.name} {version}")
    yield Row("packages", not wrong, "; ".join(wrong) or ", ".join(seen), "run `make setup`")


def _devices(config: Config) -> Iterator[Row]:
    ranks, gpus, cores = config.get(ClusterConfig).ranks_per_host, accelerators(), len(os.sched_getaffinity(0))
    if gpus:
        found = f"{gpus} GPU(s) for {ranks or gpus} rank(s) a host"
        yield Row("devices", ranks <= gpus, found, f"set cluster.ranks_per_host to {gpus} or less")
    else:
        yield Row("devices", True, f"no GPU: {ranks or 1} rank(s) on {cores} CPU core(s)")


def _places(config: Config, job: Job) -> Iterator[Row]:
    pipeline = config.sections["pipeline"]
    folders = [("shards folder", pipeline.output)] if job == "tokenize" else [("run folder", config.get(RunConfig).dir)]
    for what, folder in folders:
        there = folder.absolute()
        while not there.exists():
            there = there.parent
        if not os.access(there, os.W_OK):
            yield Row(what, False, f"{there} cannot be written", "choose another folder, or mend its rights")
            continue
        free = shutil.disk_usage(there).free / 1e9
        enough = free >= pipeline.min_free_gb
        yield Row(what, enough, f"{folder}: {free:.1f} GB free", f"free {pipeline.min_free_gb:g} GB, or choose another disk")


def _ports(config: Config) -> Iterator[Row]:
    metrics, cluster = config.get(MetricsConfig), config.get(ClusterConfig)
    wanted = [("metrics.port", metrics.host, metrics.port)] if metrics.enabled else []
    for key, host, port in [*wanted, ("cluster.master_port", "0.0.0.0", cluster.master_port)]:
        if port:
            try:
                free = is_free(port, host)
                yield Row(key, free, f"{host}:{port} is {'free' if free else 'in use'}", f"set {key} to a free port, or to 0")
            except OSError as error:
                yield Row(key, False, f"{host}:{port}: {error.strerror}", "name an address of this machine")


def _tokenizer(config: Config, look: Lookers) -> Iterator[Row]:
    folder = config.sections["tokenizer"].weights
    try:
        yield Row("tokenizer", True, f"{folder}: {look.tokenizer(folder)[:12]}")
    except (ValueError, OSError) as error:
        yield Row("tokenizer", False, str(error))


def _corpus(config: Config, look: Lookers) -> Iterator[Row]:
    try:
        count = look.videos(config)
        yield Row("corpus", count > 0, f"{count} video(s)", "set corpus.videos")
    except (ValueError, OSError) as error:
        yield Row("corpus", False, str(error))


def _shards(config: Config, look: Lookers) -> Iterator[Row]:
    curriculum = config.sections["curriculum"]
    samples: dict[str, int] = {}
    for folder in curriculum.shards or (config.sections["pipeline"].output,):
        try:
            facts = look.shards(folder)
        except (ValueError, OSError) as error:
            yield Row("shards", False, str(error))
            continue
        for bucket, count in facts.samples.items():
            samples[bucket] = samples.get(bucket, 0) + count
        try:
            mine = look.tokenizer(config.sections["tokenizer"].weights)
        except (ValueError, OSError):
            continue  # said in the tokenizer's own row
        same = mine == facts.tokenizer
        found = f"{folder}: {sum(facts.samples.values())} samples by tokenizer {facts.tokenizer[:12]}"
        yield Row("shards", same, found, f"tokenizer.weights is {mine[:12]}: name the one that made them, or tokenize anew")
    if not curriculum.stages:
        yield Row("curriculum", False, "has no stage", "write curriculum.stages")
    for stage in curriculum.stages:
        missing = sorted({mix.bucket for mix in stage.mix if not samples.get(mix.bucket)})
        found = ", ".join(f"{mix.bucket} ({samples.get(mix.bucket, 0)})" for mix in stage.mix)
        mend = f"add {', '.join(missing)} to pipeline.buckets and tokenize, or leave it out of the stage"
        yield Row(f"stage {stage.name}", not missing, found, mend)


def _checkpoint(config: Config) -> Iterator[Row]:
    if not config.sections["curriculum"].stages:
        return
    reason = unfinished(config)
    yield Row("checkpoint", True, reason or "the run is complete; `videoar launch` has nothing to do")


def _hosts(hostfile: Path) -> list[Row]:
    try:
        hosts = read_hostfile(hostfile)
    except ValueError as error:
        return [Row("hostfile", False, str(error))]
    if shutil.which("ssh") is None:
        return [Row("hostfile", False, "no ssh on this machine", "apt-get install openssh-client")]
    with ThreadPoolExecutor(max_workers=32) as pool:
        return list(pool.map(_host, hosts))


def _host(host: Host) -> Row:
    """Log in as the launcher does, without a password, and look for this Python, this folder, and the clock."""
    what = f"host {host.name}"
    python, folder = shlex.quote(sys.executable), shlex.quote(str(Path.cwd()))
    script = f"test -x {python} && echo python; test -d {folder} && echo folder; date +%s.%N"
    words = ["ssh", "-o", "PasswordAuthentication=no", "-o", "BatchMode=yes", "-o", "ConnectTimeout=10", host.name, script]
    began = time.time()
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=SSH_SECONDS, check=False)
    except subprocess.TimeoutExpired:
        return Row(what, False, f"no answer in {SSH_SECONDS:g} s", "is it up, and does `ssh` reach it?")
    ended = time.time()
    if done.returncode != 0:
        said = done.stderr.strip().splitlines() or ["nothing said"]
        return Row(what, False, f"ssh: {said[-1]}", f"make `ssh {host.name} true` work without a password")
    lines = done.stdout.split()
    if "python" not in lines:
        return Row(what, False, f"has no {sys.executable}", "set the project up in the same place on every host")
    if "folder" not in lines:
        return Row(what, False, f"has no {Path.cwd()}", "share this folder between the hosts")
    clock = float(lines[-1])
    off = max(began - clock, clock - ended, 0.0)
    found = f"{host.slots} slot(s), clock within {max(off, ended - began):.1f} s"
    return Row(
        what, off <= CLOCK_SECONDS, found if off <= CLOCK_SECONDS else f"clock is {off:.0f} s off", "start an NTP client on it"
    )
