"""A folder of made clips: mp4 files, their captions, and what they are made of.

In:  clips in order, each with a name and a caption.
Out: DIR/train/*.mp4, DIR/test/*.mp4, DIR/captions.csv, DIR/dataset.json with the sha256 over all captions and pixels before coding.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import ConfigError
from cluster.runtime.atomic_files import read_json, write_json, write_text
from cluster.runtime.progress import ProgressBar
from pipeline.video import Frames, write_video


class DataSetError(ConfigError):
    """A data set that cannot be made; the message names the archive or package and what to do."""


@dataclass(frozen=True)
class MadeClip:
    """One clip of a data set."""

    name: str
    """File under DIR, such as train/000000.mp4."""
    caption: str
    frames: Frames
    """uint8 (T,H,W,3)."""


def write(folder: Path, clips: Iterable[MadeClip], count: int, fps: float, about: Mapping[str, Any]) -> str:
    """Write clips that are not there yet, the captions, and at last dataset.json; return the digest. A finished folder is not made again.

    about: all that the clips are a function of. Raises DataSetError for a folder that holds something else.
    """
    begin(folder, about)
    known = _finished(folder, {**about, "fps": fps})
    if known:
        return known
    whole, rows = hashlib.sha256(), []
    with ProgressBar(folder.name, count, stderr=True) as progress:
        for clip in clips:
            path = folder / clip.name
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                write_video(path, clip.frames, fps)
            whole.update(f"{clip.name}:{clip.caption}:{clip.frames.shape}".encode())
            whole.update(clip.frames.tobytes())
            rows.append((clip.name, clip.caption))
            progress.update()
    finish(folder, rows, {**about, "fps": fps, "digest": whole.hexdigest()})
    return whole.hexdigest()


def _finished(folder: Path, about: Mapping[str, Any]) -> str:
    """Return the digest of a folder that holds all of its clips, or nothing."""
    if not (folder / "dataset.json").exists() or not (folder / "captions.csv").exists():
        return ""
    found = read_json(folder / "dataset.json")
    digest = str(found.pop("digest", ""))
    with (folder / "captions.csv").open(newline="") as text:
        whole = all((folder / row["file"]).exists() for row in csv.DictReader(text))
    return digest if whole and found == dict(about) else ""


def begin(folder: Path, about: Mapping[str, Any]) -> None:
    """Write DIR/making.json, or check that it says the same. Raises DataSetError."""
    path = folder / "making.json"
    if path.exists() and read_json(path) != dict(about):
        raise DataSetError(f"{folder}: holds another data set ({path.name} differs): name another folder, or delete this one")
    write_json(path, dict(about))


def finish(folder: Path, rows: Iterable[tuple[str, str]], about: Mapping[str, Any]) -> None:
    """Write captions.csv, then dataset.json, which says that all is there."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("file", "caption"))
    table.writerows(rows)
    write_text(folder / "captions.csv", text.getvalue())
    write_json(folder / "dataset.json", dict(about))
