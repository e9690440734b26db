"""Where the running code is on disk: the folder that contains the four packages."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cluster

PACKAGES = ("cluster", "pipeline", "pretrain", "tokenizer")


def source_root() -> Path:
    """Return the folder that contains the packages: the root of a clone, or site-packages."""
    return Path(cluster.__file__).resolve().parent.parent


def code_digest() -> str:
    """Return the sha256 over the source files of the four packages, in all their folders, as this process imports them."""
    root, digest = source_root(), hashlib.sha256()
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()
