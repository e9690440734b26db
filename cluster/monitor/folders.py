"""Which run folders there are, and the name that tells each from all others.

In:  the folders that the user named: runs, or folders of runs.
Out: name -> folder; files of a run by their path inside it, and no others.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from cluster.config import ConfigError

MARKS = ("metrics.jsonl", "tokenizer-metrics.jsonl", "status.json", "run.json", "dataset.json")
"""Files that make a folder a run: of training, of the tokenizer, or token shards."""
DEPTH = 3
"""How many folders deep runs are looked for."""
MEDIA = (".mp4", ".webm", ".png", ".jpg", ".gif")
"""Files that are served as they are."""


class MonitorError(ConfigError):
    """What the monitor was asked to show or to do cannot be; the message names it and the fix."""


class NotThere(LookupError):
    """A run or a file that is not served; the message says no more than the request did."""


def is_run(folder: Path) -> bool:
    """Return whether a folder is a run, half written or whole."""
    return any((folder / mark).is_file() for mark in MARKS)


def check(folders: Iterable[Path]) -> None:
    """Raise MonitorError for a folder that is not there. One without runs is no error: they may come."""
    for folder in folders:
        if not folder.is_dir():
            raise MonitorError(f"{folder}: no such folder; pass run folders, or a folder of runs")


def discover(folders: Iterable[Path]) -> dict[str, Path]:
    """Return the runs in `folders`, newest first, by the shortest end of their path that no other run has."""
    found = {path.resolve(): None for folder in folders for path in _runs(folder, DEPTH)}
    paths = sorted(found, key=_changed, reverse=True)
    return {_name(path, paths): path for path in paths}


def inside(run: Path, relative: str, endings: Sequence[str] = MEDIA) -> Path:
    """Return a file of a run. Raises NotThere for one that is missing, of another kind, or outside of the run, also through links."""
    try:
        target = (run / relative).resolve()
        allowed = target.is_relative_to(run.resolve()) and target.suffix in endings and target.is_file()
    except (OSError, ValueError):  # a name too long, or with a NUL
        allowed = False
    if not allowed:
        raise NotThere("no such file in this run")
    return target


def _runs(folder: Path, depth: int) -> Iterable[Path]:
    if is_run(folder):
        yield folder
    elif depth:
        try:
            inner = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
        except OSError:  # not ours to read, or gone in the meantime
            return
        for path in inner:
            yield from _runs(path, depth - 1)


def _changed(folder: Path) -> float:
    times = [0.0]
    for mark in MARKS:
        try:
            times.append((folder / mark).stat().st_mtime)
        except OSError:  # not there
            continue
    return max(times)


def _name(path: Path, paths: Sequence[Path]) -> str:
    for length in range(1, len(path.parts) + 1):
        end = path.parts[-length:]
        if sum(other.parts[-length:] == end for other in paths) == 1:
            return "/".join(end).replace("//", "/")
    return str(path)
