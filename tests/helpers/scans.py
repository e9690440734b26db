"""Scans of videos that are one part."""

from __future__ import annotations

from collections.abc import Iterable

from pipeline.analysis.scan import Scan


def only(parts: Iterable[Scan]) -> Scan:
    """The only part of a scan."""
    (found,) = parts
    return found
