"""Checkpoint folders that are whole or not there, for both trainings.

ROOT/step-XXXXXXXX.partial with all files on the disk becomes ROOT/step-XXXXXXXX with manifest.json (size and sha256 of each
file) and DONE (sha256 of the manifest), written last. `newest` returns the newest folder whose every byte is as it was written.
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


def folder_of(root: Path, step: int) -> Path:
    """Return ROOT/step-XXXXXXXX."""
    return root / f"step-{step:08d}"


def partial_of(root: Path, step: int) -> Path:
    """Return ROOT/step-XXXXXXXX.partial, the name of a checkpoint that is being written."""
    final = folder_of(root, step)
    return final.with_name(final.name + ".partial")


def publish(partial: Path, final: Path) -> None:
    """Write the manifest over all ranks' files, rename the folder, write DONE.

    A rank may have left `files-RANK.json` (name: size and sha256) of files that it has hashed and synced already; all others are
    synced and hashed here. Raises OSError, or DiskFull.
    """
    files: dict[str, dict[str, Any]] = {}
    for path in sorted(partial.rglob("files-*.json")):
        files.update(json.loads(path.read_text()))
        path.unlink()
    for path in sorted(partial.rglob("*")):
        name = str(path.relative_to(partial))
        if path.is_file() and path.name != "manifest.json" and name not in files:
            sync(path)
            size, digest = hashed(path)[1:]
            files[name] = {"size": size, "sha256": digest}
    text = json.dumps(files, indent=1, sort_keys=True)
    write_text(partial / "manifest.json", text)
    for folder in {path.parent for path in partial.rglob("*")}:
        sync(folder)
    if final.exists():
        shutil.rmtree(final)  # left over from a run that was truncated to an earlier step, or never finished
    partial.rename(final)
    write_text(final / "DONE", hashlib.sha256(text.encode()).hexdigest() + "\n")
    sync(final.parent)


def hashed(path: Path) -> tuple[Path, int, str]:
    """Return path, size and sha256 of a file."""
    with path.open("rb") as file:
        return path, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def listed(root: Path) -> list[Path]:
    """Return the checkpoint folders below `root`, newest first, whole or not."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _NAME.match(path.name)), key=lambda path: path.name, reverse=True)


def damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint, or an empty text. Reads every byte.

    An empty DONE is how the tokenizer's training marked its checkpoints before they were hashed: such a folder is taken as it is.
    """
    try:
        manifest, done = folder / "manifest.json", folder / "DONE"
        if not manifest.exists() and done.exists() and done.stat().st_size == 0:
            return ""
        text = manifest.read_text()
        if hashlib.sha256(text.encode()).hexdigest() != done.read_text().strip():
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


def remove_leftovers(root: Path) -> None:
    """Remove what a killed job left half-written. Only while no job writes there: at its start, rank 0."""
    for pattern in ("step-*.partial", "universal-step-*"):
        for path in root.glob(pattern):
            shutil.rmtree(path)


def newest(root: Path, log: Callable[[str], None]) -> Path | None:
    """Return the newest whole checkpoint, logging which damaged ones were passed over, or None."""
    for folder in listed(root):
        problem = damage(folder)
        if not problem:
            return folder
        log(f"checkpoint {folder.name} is passed over: {problem}")
    return None
