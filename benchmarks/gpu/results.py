"""gpu.jsonl: one line per case that ended, with what it measured or why it could not. A later line of the same case wins."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

FILE = "gpu.jsonl"
Line = dict[str, Any]


def read(out: Path) -> dict[str, Line]:
    """The last line of each case; a line that was cut while it was written is as if it were not there."""
    found: dict[str, Line] = {}
    path = out / FILE
    if path.is_file():
        for text in path.read_text().splitlines():
            try:
                line = json.loads(text)
            except json.JSONDecodeError:
                continue
            found[line["case"]] = line
    return found


def append(out: Path, line: Mapping[str, Any]) -> None:
    """Add a line; it is on the disk when this returns."""
    path = out / FILE
    text = json.dumps(_plain(dict(line))) + "\n"
    if path.is_file() and path.stat().st_size:
        with path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            text = text if file.read(1) == b"\n" else "\n" + text
    with path.open("a") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def done(lines: Mapping[str, Line], card: str) -> set[str]:
    """Cases that were measured on this kind of card: figures of different cards are not compared."""
    return {case for case, line in lines.items() if line["ok"] and line["card"] == card}


def figures(lines: Mapping[str, Line], section: str) -> list[dict[str, Any]]:
    """All figures of a section."""
    return [row for line in lines.values() if line["section"] == section and line["ok"] for row in line["figures"]]


def _plain(value: Any) -> Any:
    """Numbers with six digits; what is not finite becomes null."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    if isinstance(value, dict):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_plain(item) for item in value]
    return value
