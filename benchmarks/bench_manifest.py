"""Does the driver's part of the job (merging the plan, committing, the index) cost the same a clip at 1,000 and at 8,000 clips?

    python benchmarks/bench_manifest.py

Each size runs in its own process: made-up plans of one-clip videos are merged into the table of clips, every group is committed
with small random samples, and the index is written and verified. Prints CPU seconds a clip and the growth of resident memory,
and one JSON line. No decoding and no codec: those are linear by themselves (one clip after the other).
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.runtime.atomic_files import write_json
from pipeline.books.index import finish
from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import PipelineConfig
from pipeline.maintenance.verify import verify
from pipeline.records import SourceVideo, VideoPlan
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import write_shard
from tests.helpers.fakes import SHAPE, FakeCodec, clip, encoded

SIZES = (1000, 8000)
PART = 250


def one(count: int) -> dict[str, float]:
    """Run one size in this process."""
    process = psutil.Process()
    config = PipelineConfig(clips_per_shard=64, min_free_gb=0)
    encoded(0)
    before = process.memory_info().rss
    with tempfile.TemporaryDirectory(prefix="manifest-") as scratch:
        folder = Path(scratch)
        spec = FakeCodec.spec.plain()
        write_json(folder / "dataset.json", {"format": 1, "spec": spec, "fps": 8.0, "buckets": [SHAPE.name], "features": False})
        manifest = Manifest(folder)
        generation = manifest.begin_generation([SourceVideo(f"video-{number:06d}.mp4") for number in range(count)])
        for part in range(0, count, PART):
            plans = [
                VideoPlan(f"video-{number:06d}.mp4", f"{number:032x}", (clip(number, source=f"video-{number:06d}.mp4"),), ())
                for number in range(part, part + PART)
            ]
            write_part(manifest.part(part // PART), plans)
        began = time.process_time()
        merge(manifest, generation, config, count // PART)
        merged = time.process_time() - began
        began = time.process_time()
        for group, (name,), _ in manifest.shards():
            samples = [encoded(round(planned.begin), source=planned.source) for planned in manifest.clips(group)]
            write_shard(folder, name, samples, [], FakeCodec.spec)
        committed = time.process_time() - began
        began = time.process_time()
        finish(manifest)
        finished = time.process_time() - began
        began = time.process_time()
        sound = verify(folder).sound
        verified = time.process_time() - began
    assert sound
    grown = process.memory_info().rss - before
    return {"merge": merged, "commit": committed, "finish": finished, "verify": verified, "memory_mb": grown / 1e6}


def main() -> int:
    if len(sys.argv) == 2:
        print(json.dumps(one(int(sys.argv[1]))))
        return 0
    found = {}
    for size in SIZES:
        done = subprocess.run([sys.executable, __file__, str(size)], capture_output=True, text=True, check=True)
        found[size] = json.loads(done.stdout.splitlines()[-1])
    print(f"{'':10s}" + "".join(f"{size:>12,d} clips" for size in SIZES))
    for stage in ("merge", "commit", "finish", "verify"):
        print(f"{stage:10s}" + "".join(f"{1e6 * found[size][stage] / size:12.0f} us/clip" for size in SIZES))
    print(f"{'memory':10s}" + "".join(f"{found[size]['memory_mb']:12.0f} MB     " for size in SIZES))
    total = {size: sum(found[size][s] for s in ("merge", "commit", "finish", "verify")) / size for size in SIZES}
    result = {
        "name": "manifest_cost_a_clip",
        "unit": "us",
        "ours": round(1e6 * total[SIZES[1]], 1),
        "plain": round(1e6 * total[SIZES[0]], 1),
        "ratio": round(total[SIZES[1]] / total[SIZES[0]], 3),
        "memory_mb": {str(size): round(found[size]["memory_mb"], 1) for size in SIZES},
    }
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
