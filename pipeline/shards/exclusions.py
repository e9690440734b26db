"""DOC from pipeline/shards/dataset.py."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

from pipeline.records import Clip, Reject
from pipeline.shards.layout import DatasetError

EXCLUDED = "excluded.json"


def excluded(folder: Path) -> list[str]:
    """Return the sources taken down from a folder (excluded.json), sorted; a name ending in / takes all below it."""
    try:
        return sorted(json.loads((folder / EXCLUDED).read_text()))
    except FileNotFoundError:
        return []
    except (json.JSONDecodeError, TypeError) as error:
        raise DatasetError(f"{folder / EXCLUDED}: not a JSON list of sources: {error}") from error


def hidden(source: str, gone: Sequence[str]) -> bool:
    """Whether a source is among those taken down."""
    return any(source.startswith(name) if name.endswith("/") else source == name for name in gone)


def taken_down(clip: Clip) -> Reject:
    """The refusal of a clip whose source was excluded."""
    return Reject(clip.source, "exclude", "taken_down", "", clip.begin, clip.end, {}, clip.key)
