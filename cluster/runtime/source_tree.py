"""Where the code that runs lies on disk: the folder that holds the four packages."""

from __future__ import annotations

from pathlib import Path

import cluster

PACKAGES = ("cluster", "pipeline", "pretrain", "tokenizer")


def source_root() -> Path:
    """Return the folder that holds the packages: a clone's root, or site-packages. Found by name, not by counting levels."""
    return Path(cluster.__file__).resolve().parent.parent
