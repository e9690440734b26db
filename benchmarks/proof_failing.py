"""Proof: inputs that the data path once got wrong each have the right outcome, through the real job.

    python benchmarks/proof_failing.py [--folder DIR]

Takes the shared folder's `failing` (see the README there) and runs `videoar tokenize` on it: once on all videos, and once on each kind
of list and table. Prints one line for each input, and one JSON line. The test suite holds the same kinds with inputs of its own making.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline.records import Clip, Reject
from pipeline.shards.manifest import Manifest
from tests.helpers.fakes import tiny_tokenizer

ROOT = Path(__file__).resolve().parents[1]
VIDEOS = (".mp4", ".avi", ".ts", ".mkv", ".tar", ".jpg")
BUCKETS = [{"frames": 1, "height": 32, "width": 32}, {"frames": 5, "height": 32, "width": 32}]
FILTERS = {"min_side": 16, "min_luma": 0, "min_motion": 0, "min_sharpness": 0}
MANY = 12


@dataclass(frozen=True)
class Outcome:
    """What one job made of its inputs."""

    code: int
    output: str
    clips: list[Clip]
    rejects: list[Reject]

    def of(self, name: str) -> list[Clip]:
        """Return the clips of five frames of a source."""
        return [clip for clip in self.clips if clip.source.endswith(name) and clip.bucket.frames == 5]

    def last(self, name: str) -> float:
        """Return where the last clip of a source ends, seconds."""
        return max((clip.end for clip in self.of(name)), default=0.0)

    def refused(self, name: str) -> list[tuple[str, bool]]:
        """Return the refusals of a source: reason, and whether it is of the whole video."""
        return [(reject.reason, reject.begin is None) for reject in self.rejects if reject.source.endswith(name)]

    def captions(self) -> list[str]:
        """Return the captions of all videos that have clips, by name."""
        return [caption for _, caption in sorted({(clip.source, clip.caption) for clip in self.clips})]


def run(scratch: Path, name: str, *words: str) -> Outcome:
    """Run the job on the copied videos."""
    shards = scratch / f"shards-{name}"
    config = scratch / f"{name}.json"
    pipeline = {"output": str(shards), "buckets": BUCKETS, "fps": 8, "workers": 1, "min_free_gb": 0, "filters": FILTERS}
    plain = {"tokenizer": {"weights": str(scratch / "tokenizer")}, "pipeline": pipeline, "metrics": {"enabled": False}}
    config.write_text(json.dumps(plain))
    command = [sys.executable, "-m", "cluster.cli.main", "tokenize", "-c", str(config), *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        command, cwd=scratch / "videos", capture_output=True, text=True, check=False, timeout=600, env=environment
    )
    manifest = Manifest(shards)
    clips = [clip for group in range(manifest.groups()) for clip in manifest.clips(group)] if done.returncode == 0 else []
    return Outcome(done.returncode, done.stdout + done.stderr, clips, manifest.rejects() if done.returncode == 0 else [])


def prepare(scratch: Path, failing: Path) -> None:
    """Copy the inputs, and make those that cannot be shared: a name with a colon, links that lead in circles."""
    tiny_tokenizer(scratch / "tokenizer")
    videos = scratch / "videos"
    videos.mkdir()
    (scratch / "lists").mkdir()
    for path in failing.iterdir():
        if path.suffix in VIDEOS:
            shutil.copy(path, videos / path.name.replace("12_30", "12:30"))
        else:
            shutil.copy(path, videos.parent / "lists")
    (videos / "loop" / "a").mkdir(parents=True)
    shutil.copy(failing / "v0.mp4", videos / "loop" / "a")
    for name in ("up", "up2"):
        (videos / "loop" / "a" / name).symlink_to("..")


def on_videos(scratch: Path) -> dict[str, bool]:
    """Run the job on all videos; returns what holds, by input."""
    found = run(scratch, "videos", "corpus.videos=[., odd.tar, cut.jpg]")
    if found.code != 0:
        print(found.output[-3000:])
    shapes = [clip.begin for clip in found.of("size_change.ts")]
    lost = found.refused("lost_packets.ts")
    copies = [reject for reject in found.rejects if reject.reason == "exact_copy"]
    return {
        "v1.mp4: used": bool(found.of("v1.mp4")),
        "12:30.mp4, v0.mp4: one used, the other its exact copy": bool(found.of("12:30.mp4")) != bool(found.of("v0.mp4")),
        "make_loop.sh: its file once, as an exact copy": len(copies) == 2
        and found.refused("loop/a/v0.mp4") == [("exact_copy", True)],
        "odd.tar: all four members used, a::b.mp4 too": len({clip.source for clip in found.clips if "odd.tar" in clip.source})
        == 4,
        "intra_refresh.mp4: used (pixels: make proof-seek)": bool(found.of("intra_refresh.mp4")),
        "bframes_no_pts.avi: clips up to 2 s": 1.8 <= found.last("bframes_no_pts.avi") <= 2.2,
        "cat.ts: clips up to 4 s": 3.7 <= found.last("cat.ts") <= 4.2,
        "outlier.mkv: clips of 2 s, not of 300": 1 <= len(found.of("outlier.mkv")) <= MANY,
        "size_change.ts: clips of both parts": len(shapes) >= 2 and min(shapes) == 0 < max(shapes),
        "lost_packets.ts: what is smeared is refused": ("damaged", False) in lost or ("damaged", True) in lost,
        "cut.jpg: refused": found.refused("cut.jpg") == [("damaged", True)],
    }


def on_lists(scratch: Path) -> dict[str, bool]:
    """Run the job on each list of videos and each table of captions; returns what holds, by input."""
    videos = scratch / "videos"
    for path in (scratch / "lists").iterdir():
        shutil.copy(path, videos)  # names in a list are relative to it
    surrogate = run(scratch, "surrogate", "corpus.videos=[lone_surrogate.jsonl]")
    separator = run(scratch, "separator", "corpus.videos=[u2028.jsonl]")
    scheme = run(scratch, "scheme", "corpus.videos=[unknown_scheme.csv]")
    scheme_again = run(scratch, "scheme", "corpus.videos=[unknown_scheme.csv]")
    both = "corpus.videos=[v0.mp4, v1.mp4]"
    numbers = run(scratch, "numbers", both, "corpus.captions=nan.parquet")
    several = run(scratch, "several", both, "corpus.captions=list_caption.parquet")
    comma = run(scratch, "comma", both, "corpus.captions=unquoted_comma.csv")
    twice = run(scratch, "twice", both, "corpus.captions=duplicates.csv")
    return {
        "lone_surrogate.jsonl: a mended caption, counted": surrogate.captions() == ["a dog", "a cut emoji \ufffd"]
        and "half characters" in surrogate.output,
        "u2028.jsonl: read": separator.captions() == ["one\u2028two"],
        "unknown_scheme.csv: one refusal, the rest used, again too": scheme.code == scheme_again.code == 0
        and scheme.captions() == ["ok"]
        and [reject.reason for reject in scheme.rejects] == ["bad_name"],
        "nan.parquet: no caption": numbers.captions() in (["", ""], []),
        "list_caption.parquet: refused, row and type named": several.code != 0 and "row 1" in several.output,
        "unquoted_comma.csv: an error with the line": comma.code != 0 and "line 2" in comma.output,
        "duplicates.csv: a rule and a count": twice.captions() == ["first", ""] and "1 rows repeat" in twice.output,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=ROOT.parent / "shared" / "failing")
    options = parser.parse_args()
    if not options.folder.is_dir():
        print(f"no folder {options.folder}: name the one with the failing inputs by --folder", file=sys.stderr)
        return 2
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="failing-") as name:
        scratch = Path(name)
        prepare(scratch, options.folder)
        held = on_videos(scratch) | on_lists(scratch)
    for what, right in held.items():
        print(f"{'right' if right else 'WRONG'}  {what}")
    result = {"name": "proof_failing", "unit": "inputs with the right outcome", "ours": sum(held.values()), "limit": len(held)}
    print(json.dumps({**result, "seconds": round(time.monotonic() - began, 1)}))
    return 0 if all(held.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
