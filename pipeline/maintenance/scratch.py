"""Scratch of a command on a SHARDS folder: where its tasks spill what does not fit into memory.

In: a folder. Out: a folder in it, locked while the command runs and removed at its end.
"""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cluster.runtime.file_lock import FileLock
from pipeline.shards.layout import DatasetError


@contextlib.contextmanager
def scratch_of(folder: Path, name: str, done: str) -> Iterator[Path]:
    """Give a folder for what tasks spill: beside the shards, where all hosts see it; elsewhere if that cannot be written.

    name: of the folder; a command that is killed leaves it, and the next one finds it. done: what is done to the shards, for messages.
    Raises DatasetError while another process holds it.
    """
    path = folder / name
    with contextlib.ExitStack() as held:
        lock = FileLock(path / "lock", lambda holder: DatasetError(f"{folder}: is being {done} by {holder}; wait for it"))
        try:
            held.enter_context(lock)
        except OSError:
            path = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="scratch-")))
        yield path
        shutil.rmtree(path, ignore_errors=True)  # with the lock; a command that begins at this moment makes its own folder anew
