"""How far a tokenization job is, from its folder of token shards.

In:  a SHARDS folder at any moment of its job.
Out: plain values for JSON: planned and committed shards, samples, tokens, and what was refused by reason.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

MOST_RATES = 400
"""Points of the curve of committed shards."""


def folders(run: Path, settings: Mapping[str, Any]) -> list[Path]:
    """Return the SHARDS folders of a run: itself, RUN/shards, and pipeline.output of its configuration."""
    section = settings.get("pipeline")
    named = section.get("output") if isinstance(section, dict) else None
    places = [run, run / "shards", *([Path(named)] if isinstance(named, str) and "://" not in named else [])]
    found = {place.resolve(): None for place in places if (place / "dataset.json").is_file()}
    return list(found)


def progress(folder: Path, problems: list[str]) -> dict[str, Any]:
    """Return the state of a SHARDS folder."""
    planned = _column(folder / "clips.parquet", "shard", problems)
    names = sorted(set(planned)) if planned is not None else []
    commits = sorted(_commits(folder))
    now = time.time()
    recent = [moment for moment in commits if now - moment < 600]
    return {
        "folder": str(folder),
        "finished": (folder / "index.parquet").is_file(),
        "planned_parts": len(list((folder / ".plan").glob("part-*.json"))),
        "clips": len(planned) if planned is not None else None,
        "planned": len(names) or None,
        "committed": len(commits),
        "shards_per_minute": round(len(recent) / 10, 2) if recent else None,
        "commits": [[moment, number + 1] for number, moment in enumerate(commits)][:: max(1, len(commits) // MOST_RATES)],
        "rejects": rejects(folder, problems),
    }


def rejects(folder: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the count of refusals by stage and reason, largest first."""
    stages = _column(folder / "rejects.parquet", "stage", problems)
    reasons = _column(folder / "rejects.parquet", "reason", problems)
    if stages is None or reasons is None:
        return []
    counts = Counter(zip(stages, reasons, strict=True))
    return [{"stage": stage, "reason": reason, "count": count} for (stage, reason), count in counts.most_common()]


def _commits(folder: Path) -> Iterator[float]:
    for path in folder.glob("f*/shard-*.parquet"):
        try:
            yield path.stat().st_mtime
        except FileNotFoundError:  # discarded while it was looked at
            continue


def _column(path: Path, name: str, problems: list[str]) -> list[Any] | None:
    """Return a column of a parquet file; None where it is missing or cannot be read."""
    try:
        values: list[Any] = pq.read_table(path, columns=[name])[name].to_pylist()
    except FileNotFoundError:
        return None
    except (OSError, KeyError, pa.ArrowException) as error:
        problems.append(f"{path}: {str(error).splitlines()[0]}")
        return None
    return values
