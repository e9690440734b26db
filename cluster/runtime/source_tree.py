"""Where the running code is on disk: the folder that contains the four packages."""

from __future__ import annotations

from pathlib import Path

import cluster

PACKAGES = ("cluster", "pipeline", "pretrain", "tokenizer")


def source_root() -> Path:
    """Return the folder that contains the packages: the root of a clone, or site-packages."""
    return Path(cluster.__file__).resolve().parent.parent
