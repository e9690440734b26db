"""Checkpoint folders with an integrity check, for both trainings.

All ranks write into ROOT/step-XXXXXXXX.partial; `publish` adds manifest.json (size and sha256 of each file), renames the folder
to ROOT/step-XXXXXXXX and writes DONE (sha256 of the manifest) last. `newest` returns the newest folder in which every byte is
as it was written.
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
    """Return ROOT/step-XXXXXXXX.partial, the folder of a checkpoint that is being written."""
    final = folder_of(root, step)
    return final.with_name(final.name + ".partial")


def publish(partial: Path, final: Path) -> None:
    """Write the manifest of all ranks' files, rename the folder and write DONE. Called by one rank, after the others have written.

    A rank may leave `files-RANK.json` (name -> size and sha256) for files that it has already hashed and synced; all other files
    are synced and hashed here. Raises OSError or DiskFull.
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
        shutil.rmtree(final)  # left over from a run that was truncated to an earlier step, or was never completed
    partial.rename(final)
    write_text(final / "DONE", hashlib.sha256(text.encode()).hexdigest() + "\n")
    sync(final.parent)


def hashed(path: Path) -> tuple[Path, int, str]:
    """Return the path, size and sha256 of a file."""
    with path.open("rb") as file:
        return path, path.stat().st_size, hashlib.file_digest(file, "sha256").hexdigest()


def listed(root: Path) -> list[Path]:
    """Return the checkpoint folders in `root`, newest first, damaged ones included."""
    if not root.is_dir():
        return []
    return sorted((path for path in root.iterdir() if _NAME.match(path.name)), key=lambda path: path.name, reverse=True)


def damage(folder: Path) -> str:
    """Return what is wrong with a checkpoint, or an empty string. Reads every byte.

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
    """Remove what a killed job left unfinished. Call it only while no job writes to `root`: on rank 0, at the start."""
    for pattern in ("step-*.partial", "universal-step-*"):
        for path in root.glob(pattern):
            shutil.rmtree(path)


def newest(root: Path, log: Callable[[str], None]) -> Path | None:
    """Return the newest undamaged checkpoint, or None; each damaged one that is skipped is logged."""
    for folder in listed(root):
        problem = damage(folder)
        if not problem:
            return folder
        log(f"checkpoint {folder.name} is damaged and skipped: {problem}")
    return None
