"""What a clip costs in a large corpus: list, merge, index, start, read, verify, exclude, later videos. And a video in a tar, a caption in a table.

    python benchmarks/bench_corpus.py --clips 1000000 [--stage list|merge|index|start|read|verify|exclude|later] [--shard-rows 64] [--out DIR]
    python benchmarks/bench_corpus.py

With --clips: synthetic books of so many clips, no pixels. Each stage (benchmarks/corpus_stages) runs in a process of its own on a Ray
of this machine's cores; start and read are one rank of a training job, whose memory is counted above that of its imports. Prints seconds
and bytes per clip of each, the peak resident memory of driver and rank, and one JSON line. verify writes tars, 5 kB a clip.

Without: does a video cost the same in a tar of 100 and of 10,000, and a caption the same in a table of 1,000 and of 100,000? Each size
runs in its own process: the corpus is listed, and each member fetched with its caption beside it; or a table is read and each of its
rows looked up. Prints CPU microseconds and bytes of growth per item, and one JSON line with the larger ratio of the two costs. Small
members: what is measured is the finding, not the copying.
"""

from __future__ import annotations

import argparse
import importlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import psutil

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.config import CorpusConfig
from pipeline.corpus import fetch
from pipeline.corpus.caption_table import CaptionTable
from pipeline.corpus.listing import find

STAGES = ("list", "merge", "index", "start", "read", "verify", "exclude", "later")
SIZES = {"tar": (100, 10_000), "jsonl": (1_000, 100_000), "csv": (1_000, 100_000)}


def tar_of(folder: Path, count: int) -> Path:
    """Write a tar of `count` members with a caption beside each."""
    path = folder / "videos.tar"
    with tarfile.open(path, "w") as tar:
        for number in range(count):
            for ending, data in (("mp4", b"x" * 2000), ("txt", b"a dog runs")):
                header = tarfile.TarInfo(f"{number:06}.{ending}")
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    return path


def members(path: Path) -> int:
    """List a tar, and fetch each member and its caption."""
    videos = find(CorpusConfig(videos=(str(path),)))
    for video in videos:
        assert fetch.sidecar(video.source) == "a dog runs"
        with fetch.local(video.source) as local:
            assert local.stat().st_size == 2000
    return len(videos)


def rows(path: Path, count: int) -> int:
    """Read a table and look up each of its rows."""
    table = CaptionTable.read(path)
    return sum(table.look_up(f"/data/{number:06}.mp4")[0] == f"caption {number}" for number in range(count))


def one(kind: str, count: int) -> dict[str, float]:
    """Run one size in this process."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        path = folder / f"table.{kind}"
        if kind == "tar":
            path = tar_of(folder, count)
        elif kind == "csv":
            path.write_text("file,caption\n" + "".join(f"{n:06}.mp4,caption {n}\n" for n in range(count)))
        else:
            path.write_text(
                "".join(json.dumps({"file": f"{n:06}.mp4", "caption": f"caption {n}"}) + "\n" for n in range(count))
            )
        process = psutil.Process()
        before, began = process.memory_info().rss, time.process_time()
        found = members(path) if kind == "tar" else rows(path, count)
        assert found == count
        spent = time.process_time() - began
        return {"microseconds": 1e6 * spent / count, "bytes": (process.memory_info().rss - before) / count}


def stages(options: argparse.Namespace) -> None:
    """Measure the stages of a large corpus."""
    line: dict[str, float | str] = {"name": "corpus", "clips": options.clips, "shard_rows": options.shard_rows}
    with tempfile.TemporaryDirectory(prefix="corpus-") as temporary:
        for stage in (options.stage,) if options.stage else STAGES:
            folder = (options.out or Path(temporary)) / f"{stage}-{options.clips}-{options.shard_rows}"
            module = importlib.import_module(f"benchmarks.corpus_stages.{stage}")
            if not folder.exists():
                folder.mkdir(parents=True)
                module.prepare(folder, options.clips, options)
            words = [sys.executable, __file__, "--clips", str(options.clips), "--stage", stage, "--run", str(folder)]
            done = subprocess.run(
                [*words, "--shard-rows", str(options.shard_rows)], check=True, stdout=subprocess.PIPE, text=True
            ).stdout
            found = json.loads(done.splitlines()[-1])
            whose = "rank" if "rank_mb" in found else "driver"
            memory = f"{whose} {found[f'{whose}_mb']:.0f} MB"
            memory += (
                ""
                if whose == "rank"
                else f" at most (+{found['driver_grown_mb']:.0f}), a worker {found.get('worker_mb', 0):.0f} MB"
            )
            print(
                f"{stage:6s} {found['seconds']:8.1f} s, {1e6 * found['seconds'] / options.clips:6.2f} us and "
                f"{found['bytes'] / options.clips:6.1f} bytes of books per clip, {memory}; "
                + ", ".join(f"{name} {value:.1f}" for name, value in found.items() if name.endswith("_s"))
            )
            line[f"{whose}_mb"] = round(max(float(line.get(f"{whose}_mb", 0)), found[f"{whose}_mb"]), 1)
            line[f"{stage}_s"] = round(found["seconds"], 2)
            line[f"{stage}_clips_per_s"] = round(options.clips / found["seconds"])
    print(json.dumps(line))


def options_of(words: list[str]) -> argparse.Namespace:
    """Return the options of a run over stages."""
    parser = argparse.ArgumentParser(description="What a clip costs in a large corpus.")
    parser.add_argument("--clips", type=int, required=True)
    parser.add_argument("--stage", choices=STAGES, help="only this one; else all of them")
    parser.add_argument("--shard-rows", type=int, default=64, help="pipeline.clips_per_shard")
    parser.add_argument("--out", type=Path, help="keep what the stages read here, or use what is here")
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(words)


def main() -> int:
    """Measure the stages, or each kind of table at both sizes."""
    if "--clips" in sys.argv or "--help" in sys.argv:
        options = options_of(sys.argv[1:])
        if options.run:
            module = importlib.import_module(f"benchmarks.corpus_stages.{options.stage}")
            print(json.dumps(module.run(options.run, options.clips, options)))
        else:
            stages(options)
        return 0
    if len(sys.argv) == 3:
        print(json.dumps(one(sys.argv[1], int(sys.argv[2]))))
        return 0
    ratios = {}
    for kind, sizes in SIZES.items():
        cost = []
        for count in sizes:
            words = [sys.executable, __file__, kind, str(count)]
            runs = [json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout) for _ in range(3)]
            cost.append(min(run["microseconds"] for run in runs))
            print(
                f"{kind} of {count}: {cost[-1]:.1f} CPU microseconds an item, memory {runs[0]['bytes']:.0f} bytes an item",
                flush=True,
            )
        ratios[kind] = cost[1] / cost[0]
    worst = max(ratios, key=lambda kind: ratios[kind])
    print(
        json.dumps(
            {
                "name": "corpus",
                "unit": "cost of an item, large over small",
                "ours": round(ratios[worst], 3),
                "limit": 1.2,
                "worst": worst,
            }
        )
    )
    return 0 if ratios[worst] <= 1.2 else 1


if __name__ == "__main__":
    sys.exit(main())
