"""`videoar preflight`: finds what would stop a job before it starts.

In:  a Config, what the job reads and writes, functions that inspect the tokenizer, the shards and the corpus, maybe a hostfile.
Out: findings: what was checked, whether it is all right, what was found, the fix.

This package imports none of the others, so the caller passes their settings as `JobInputs` and their functions as `Probes`.
A check that fails does not stop the others.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement

from cluster import supported
from cluster.config import ClusterConfig, Config, MetricsConfig, RunConfig
from cluster.config.precision import describe
from cluster.launch.host_checks import Finding, Via, check_hosts
from cluster.launch.launcher import accelerators
from cluster.runtime import checkpoint_folders
from cluster.runtime.memory import free_memory
from cluster.runtime.ports import PortError, is_free

DISTRIBUTION = "videoar-pretrain"
JobKind = Literal["tokenize", "train"]


@dataclass(frozen=True)
class StageInputs:
    """What one stage of the curriculum trains on."""

    name: str
    buckets: tuple[str, ...]
    """Bucket folders, such as f017x128x128, in the order of the stage's mix."""


@dataclass(frozen=True)
class JobInputs:
    """What the job reads and writes, from the configuration sections of the other packages."""

    tokenizer: Path
    """Folder of the tokenizer (tokenizer.weights)."""
    output: Path
    """SHARDS folder that tokenization writes (pipeline.output)."""
    min_free_gb: float
    """Free disk space that the job needs (pipeline.min_free_gb)."""
    shards: tuple[Path | str, ...]
    """SHARDS folders or URLs that training reads."""
    stages: tuple[StageInputs, ...]
    """The curriculum."""
    makes_samples: bool = True
    """Whether training decodes videos (train.sample_every): else it needs no tokenizer."""


@dataclass(frozen=True)
class ShardFacts:
    """Contents of a SHARDS folder."""

    tokenizer: str
    """Digest of the tokenizer that made it."""
    samples: Mapping[str, int]
    """Number of samples in each bucket."""


@dataclass(frozen=True)
class Probes:
    """Functions of the other packages; each raises ValueError or OSError with the reason and the fix."""

    tokenizer: Callable[[Path], str]
    """Digest of the tokenizer in a folder."""
    shards: Callable[[Path | str], ShardFacts]
    videos: Callable[[], int]
    """Number of videos in the corpus."""
    unfinished: Callable[[], str]
    """Why the training run is not done; empty when it is."""


def check(
    config: Config,
    inputs: JobInputs,
    probes: Probes,
    job: JobKind = "train",
    hostfile: Path | None = None,
    *,
    via: Via | None = None,
) -> list[Finding]:
    """Run every check that matters to `job`; with a hostfile, also on its hosts; via slurm or ray, also on the nodes that a launch would take."""
    findings = [*_software(), *_devices(config), *_folders(config, inputs, job), *_ports(config)]
    findings += _tokenizer(inputs, probes, needed=job == "tokenize" or inputs.makes_samples)
    findings += (
        _corpus(probes)
        if job == "tokenize"
        else [*_shards(inputs, probes), *_checkpoint(config.get(RunConfig).dir, inputs, probes)]
    )
    if hostfile is not None or via is not None:
        shared = [config.get(RunConfig).dir, *(Path(each) for each in inputs.shards if "://" not in str(each))]
        cluster = config.get(ClusterConfig)
        findings += check_hosts(
            hostfile, config.source.resolve(), shared, cluster.master_addr, via=via or "ssh", ranks=cluster.ranks_per_host
        )
    return findings


def _software() -> Iterator[Finding]:
    found = f"{sys.version_info[0]}.{sys.version_info[1]}.{sys.version_info[2]}"
    yield Finding("python", not (line := supported.wrong_python(sys.version_info[:2])), found, line)
    wrong, seen = [], []
    # What pip installed has METADATA; an old egg-info folder beside the sources has not.
    installed = [each for each in importlib.metadata.distributions(name=DISTRIBUTION) if each.read_text("METADATA")]
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
    yield Finding("packages", not wrong, "; ".join(wrong) or ", ".join(seen), "run `make setup`")


def _devices(config: Config) -> Iterator[Finding]:
    ranks, gpus, cores = config.get(ClusterConfig).ranks_per_host, accelerators(), len(os.sched_getaffinity(0))
    if gpus:
        found = f"{gpus} GPU(s) for {ranks or gpus} rank(s) per host"
        yield Finding("devices", ranks <= gpus, found, f"set cluster.ranks_per_host to {gpus} or less")
    else:
        yield Finding("devices", True, f"no GPU: {ranks or 1} rank(s) on {cores} CPU core(s)")
    yield Finding("memory", True, f"{free_memory() / 1e9:.1f} GB free")
    yield Finding("dtype", True, describe())


def _folders(config: Config, inputs: JobInputs, job: JobKind) -> Iterator[Finding]:
    name, folder = ("shards folder", inputs.output) if job == "tokenize" else ("run folder", config.get(RunConfig).dir)
    there = folder.absolute()
    while not there.exists():
        there = there.parent
    if not os.access(there, os.W_OK):
        yield Finding(name, False, f"{there} is not writable", "choose another folder, or change its permissions")
        return
    free = shutil.disk_usage(there).free / 1e9
    enough = free >= inputs.min_free_gb
    yield Finding(name, enough, f"{folder}: {free:.1f} GB free", f"free {inputs.min_free_gb:g} GB, or choose another disk")


def _ports(config: Config) -> Iterator[Finding]:
    metrics, cluster = config.get(MetricsConfig), config.get(ClusterConfig)
    wanted = [("metrics.port", metrics.host or "127.0.0.1", metrics.port)] if metrics.enabled else []
    for key, host, port in [*wanted, ("cluster.master_port", "0.0.0.0", cluster.master_port)]:
        if port:
            try:
                free = is_free(port, host)
            except PortError as error:
                yield Finding(key, False, str(error), "use an address of this machine")
                continue
            yield Finding(key, free, f"{host}:{port} is {'free' if free else 'in use'}", f"set {key} to a free port, or to 0")


def _tokenizer(inputs: JobInputs, probes: Probes, *, needed: bool) -> Iterator[Finding]:
    try:
        yield Finding("tokenizer", True, f"{inputs.tokenizer}: {probes.tokenizer(inputs.tokenizer)[:12]}")
    except (ValueError, OSError) as error:
        if needed or inputs.tokenizer.exists():
            yield Finding("tokenizer", False, str(error))
        else:
            yield Finding("tokenizer", True, f"none at {inputs.tokenizer}; training needs none while train.sample_every is 0")


def _corpus(probes: Probes) -> Iterator[Finding]:
    try:
        count = probes.videos()
    except (ValueError, OSError) as error:
        yield Finding("corpus", False, str(error))
        return
    yield Finding("corpus", count > 0, f"{count} video(s)", "set corpus.videos")


def _shards(inputs: JobInputs, probes: Probes) -> Iterator[Finding]:
    samples: dict[str, int] = {}
    for folder in inputs.shards:
        try:
            facts = probes.shards(folder)
        except (ValueError, OSError) as error:
            yield Finding("shards", False, str(error))
            continue
        for bucket, count in facts.samples.items():
            samples[bucket] = samples.get(bucket, 0) + count
        found = f"{folder}: {sum(facts.samples.values())} samples by tokenizer {facts.tokenizer[:12]}"
        try:
            digest = probes.tokenizer(inputs.tokenizer)
        except (ValueError, OSError):
            digest = facts.tokenizer  # the tokenizer's own finding reports it
        fix = f"tokenizer.weights is {digest[:12]}: use the tokenizer that made the shards, or tokenize again"
        yield Finding("shards", digest == facts.tokenizer, found, fix)
    if not inputs.stages:
        yield Finding("curriculum", False, "has no stage", "add curriculum.stages")
    for stage in inputs.stages:
        missing = sorted({bucket for bucket in stage.buckets if not samples.get(bucket)})
        found = ", ".join(f"{bucket} ({samples.get(bucket, 0)})" for bucket in stage.buckets)
        fix = f"add {', '.join(missing)} to pipeline.buckets and tokenize, or remove it from the stage"
        yield Finding(f"stage {stage.name}", not missing, found, fix)


def _checkpoint(run_dir: Path, inputs: JobInputs, probes: Probes) -> Iterator[Finding]:
    if inputs.stages:
        reason = probes.unfinished()
        yield Finding("checkpoint", True, reason or "the run is complete; `videoar launch` has nothing to do")
        for folder in checkpoint_folders.listed(run_dir / "checkpoints")[:1]:
            wrong = checkpoint_folders.damage(folder)
            yield Finding("newest checkpoint", not wrong, f"{folder}: {wrong or 'read back'}", "the one before it will be used")
