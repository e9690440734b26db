"""Checkpoint folders with an integrity check, for both trainings.

All ranks write into ROOT/step-XXXXXXXX.partial; `publish` adds manifest.json (size and sha256 of each file), writes DONE (sha256 of
the manifest) last and renames the folder to ROOT/step-XXXXXXXX. A checkpoint is sound if every byte is as it was written: only such
ones are resumed from, counted and pruned. What is not, and what another history of the run has left above the step that it resumed
from, is moved to the folder `aside` of the run, where nothing is read or removed again.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cluster.runtime.atomic_files import sync, write_text

ASIDE = "aside"
"""Sub-folder of a run for what is neither used nor removed."""
_NAME = re.compile(r"^step-(\d{8})$")


def folder_of(root: Path, step: int) -> Path:
    """Return ROOT/step-XXXXXXXX."""
    return root / f"step-{step:08d}"


def partial_of(root: Path, step: int) -> Path:
    """Return ROOT/step-XXXXXXXX.partial, the folder of a checkpoint that is being written."""
    final = folder_of(root, step)
    return final.with_name(final.name + ".partial")


def publish(partial: Path, final: Path) -> None:
    """Write the manifest of all ranks' files and DONE, then rename the folder. Called by one rank, after the others have written.

    A rank may leave `files-RANK.json` (name -> size and sha256) for files that it has already hashed and synced; all other files
    are synced and hashed here. Raises OSError or DiskFull.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(partial.rglob("files-*.json")):
        files.update(json.loads(path.read_text()))
        path.unlink()
    for path in sorted(partial.rglob("*")):
        name = str(path.relative_to(partial))
        if path.is_file() and name not in ("manifest.json", "DONE") and name not in files:
            sync(path)
            size, digest = hashed(path)[1:]
            files[name] = {"size": size, "sha256": digest}
    text = json.dumps(files, indent=1, sort_keys=True)
    write_text(partial / "manifest.json", text)
    for folder in {path.parent for path in partial.rglob("*")}:
        sync(folder)
    write_text(partial / "DONE", hashlib.sha256(text.encode()).hexdigest() + "\n")
    if final.exists():
        set_aside(final, final.parent.parent)
    partial.rename(final)
    sync(final.parent)


def set_aside(path: Path, run: Path) -> Path:
    """Move a file or folder below `run` to the same place below RUN/aside, with a number if that is taken. Returns where it is now."""
    number, place = 1, run / ASIDE / path.relative_to(run)
    place.parent.mkdir(parents=True, exist_ok=True)
    target = place
    while target.exists():
        number += 1
        target = place.with_name(f"{place.name}-{number}")
    shutil.move(path, target)
    sync(place.parent)
    sync(path.parent)
    return target


def hashed(path: Path) -> tuple[Path, int, str]:
    """Return the path, size and sha256 of a file."""
    with path.open("rb") as file:
        return path, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def listed(root: Path) -> list[Path]:
    """Return the checkpoint folders in `root`, newest first, damaged ones included."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _NAME.match(path.name)), key=lambda path: path.name, reverse=True)


def damage(folder: Path, *, workers: int | None = None, contents: bool = True) -> str:
    """Return what is wrong with a checkpoint, or an empty string. Reads every byte, in `workers` threads (None: as many as pay).

    contents: False compares sizes only.
    A folder with an empty DONE and no manifest is a checkpoint of tokenizer training from before they were hashed; it is accepted.
    """
    try:
        manifest, done = folder / "manifest.json", folder / "DONE"
        if not manifest.exists() and done.exists() and done.stat().st_size == 0:
            return ""
        text = manifest.read_text()
        if hashlib.sha256(text.encode()).hexdigest() != done.read_text().strip():
            return "manifest.json does not match DONE"
        files = json.loads(text)
        for name, known in files.items():
            size = (folder / name).stat().st_size
            if size != known["size"]:
                return f"{name} has {size} bytes, {known['size']} were written"
        if contents:
            with ThreadPoolExecutor(workers) as pool:
                for name, (_, _, digest) in zip(files, pool.map(lambda name: hashed(folder / name), files)):
                    if digest != files[name]["sha256"]:
                        return f"{name} does not match its sha256"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def remove_leftovers(root: Path) -> None:
    """Remove what a killed job left unfinished. Call it only while no job writes to `root`: on rank 0, at the start."""
    for pattern in ("step-*.partial", "universal-step-*"):
        for path in root.glob(pattern):
            shutil.rmtree(path)


def survey(root: Path) -> tuple[Path | None, dict[Path, str]]:
    """Return the newest sound checkpoint, or None, and what is wrong with each newer one, newest first."""
    damaged = dict[Path, str]()
    for folder in listed(root):
        problem = damage(folder)
        if not problem:
            return folder, damaged
        damaged[folder] = problem
    return None, damaged


def newest(root: Path, log: Callable[[str], None]) -> Path | None:
    """Return the newest sound checkpoint, or None; each damaged one that is skipped is logged."""
    found, damaged = survey(root)
    for folder, problem in damaged.items():
        log(f"checkpoint {folder.name} is damaged and skipped: {problem}")
    return found


def resumed(root: Path, log: Callable[[str], None], none_sound: Callable[[str], Exception] | None) -> Path | None:
    """Return the newest sound checkpoint for a job that will write to `root`, or None; what lies above it is set aside, and logged.

    none_sound: makes the error that is raised when there are checkpoints and none is sound, from a text that names them; None sets
    all of them aside. Call it on one rank, at the start.
    """
    found, damaged = survey(root)
    if found is None and damaged and none_sound is not None:
        raise none_sound("; ".join(f"{folder.name}: {problem}" for folder, problem in damaged.items()))
    for folder, problem in damaged.items():
        log(f"checkpoint {folder.name} is damaged and skipped: {problem}; it is set aside as {set_aside(folder, root.parent)}")
    return found


class Keeper:
    """Decides which checkpoints of a run stay: the newest `keep` sound ones, and those that `always` says. One rank only.

    A checkpoint counts as sound once every byte of it has been read back; what is not sound is set aside.
    """

    def __init__(
        self, root: Path, keep: int, log: Callable[[str], None], always: Callable[[Path], bool] = lambda _: False
    ) -> None:
        self.root, self.keep, self.log, self._always = root, keep, log, always
        self.sound: set[str] = set()
        """Names of checkpoints that were read back."""

    def tend(self) -> None:
        """Read back what is new, set aside what is damaged, remove what need not be kept. Errors of the disk are logged."""
        kept, there = 0, listed(self.root)
        self.sound &= {folder.name for folder in there}
        for folder in there:
            try:
                kept += self._tend(folder, needed=kept < self.keep)
            except OSError as error:
                self.log(f"checkpoint {folder.name}: {error}; it stays as it is")

    def _tend(self, folder: Path, *, needed: bool) -> bool:
        """Tend one checkpoint; returns whether it counts. needed: fewer newer ones than `keep` are sound."""
        if needed and folder.name not in self.sound:
            problem = damage(folder, workers=2)
            if problem:
                self.log(
                    f"checkpoint {folder.name} is damaged: {problem}; it is set aside as {set_aside(folder, self.root.parent)}"
                )
                return False
            self.sound.add(folder.name)
        if not needed and not self._always(folder):
            # Renamed first: if the removal is interrupted, no folder that looks whole is left, and the next start removes the rest.
            going = folder.with_name(folder.name + ".partial")
            folder.rename(going)
            self.sound.discard(folder.name)
            shutil.rmtree(going)
        return True
