"""Folders that are whole or not there: manifest, DONE, and which checkpoint of a run is the newest whole one.

In:  RUN/checkpoints/step-XXXXXXXX.partial with all files down; later, a run folder.
Out: step-XXXXXXXX with manifest.json (size and sha256 of each file) and DONE (sha256 of the manifest), written last.
Called by: checkpoint.py, export.py, train.py. No torch.
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

_NAME = re.compile(r"^step-(\d{8})$")


def folder_of(run: Path, step: int) -> Path:
    """Return RUN/checkpoints/step-XXXXXXXX."""
    return run / "checkpoints" / f"step-{step:08d}"


def publish(partial: Path, final: Path) -> None:
    """Write the manifest over all ranks' files, rename the folder, write DONE."""
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(partial.rglob("*")):
        if path.is_dir() or path.name == "manifest.json":
            continue
        if path.name.startswith("files-"):
            files.update(json.loads(path.read_text()))
            path.unlink()
    for path in sorted(partial.rglob("*")):
        name = str(path.relative_to(partial))
        if path.is_file() and name not in files:
            size, digest = hashed(path)[1:]
            files[name] = {"size": size, "sha256": digest}
    text = json.dumps(files, indent=1, sort_keys=True)
    write_text(partial / "manifest.json", text)
    if final.exists():
        shutil.rmtree(final)  # left over from a run that was truncated to an earlier step, or never finished
    partial.rename(final)
    write_text(final / "DONE", hashlib.sha256(text.encode()).hexdigest() + "\n")
    sync(final.parent)


def hashed(path: Path) -> tuple[Path, int, str]:
    """Return path, size and sha256 of a file."""
    with path.open("rb") as file:
        return path, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def listed(run: Path) -> list[Path]:
    """Return the checkpoint folders of a run, newest first, whole or not."""
    folder = run / "checkpoints"
    if not folder.is_dir():
        return []
    return sorted((path for path in folder.iterdir() if _NAME.match(path.name)), key=lambda path: path.name, reverse=True)


def damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint, or an empty text. Reads every byte."""
    try:
        text = (folder / "manifest.json").read_text()
        if hashlib.sha256(text.encode()).hexdigest() != (folder / "DONE").read_text().strip():
            return "manifest.json does not match DONE"
        files = json.loads(text)
        with ThreadPoolExecutor() as pool:
            found = pool.map(lambda name: hashed(folder / name), files)
            for (name, known), (_, size, digest) in zip(files.items(), found):
                if size != known["size"]:
                    return f"{name} has {size} bytes, {known['size']} were written"
                if digest != known["sha256"]:
                    return f"{name} does not match its sha256"
    except FileNotFoundError as error:
        return f"{Path(error.filename).relative_to(folder)} is missing"
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        return f"{type(error).__name__}: {error}"
    return ""


def remove_leftovers(run: Path) -> None:
    """Remove what a killed job left half-written. Only while no job writes to the run: at its start, rank 0."""
    for pattern in ("step-*.partial", "universal-step-*"):
        for path in (run / "checkpoints").glob(pattern):
            shutil.rmtree(path)


def newest(run: Path, say: Callable[[str], None]) -> Path | None:
    """Return the newest whole checkpoint, saying which damaged ones were passed over, or None."""
    for folder in listed(run):
        problem = damage(folder)
        if not problem:
            return folder
        say(f"checkpoint {folder.name} is passed over: {problem}")
    return None
