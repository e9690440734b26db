"""How far a tokenization job is, from its folder of token shards.

In:  a SHARDS folder at any moment of its job.
Out: plain values for JSON: planned and committed shards, samples, tokens, and what was refused by reason.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.tables import table_list
from cluster.tables.table_folder import TableFolder

PARTS = (".arrow", ".json")
"""Endings of planned parts; JSON in folders that an earlier version began."""
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
    planned = _columns(folder, "clips", ["shard"], problems)
    names = planned["shard"].unique() if planned is not None else ()
    commits = sorted(_commits(folder))
    now = time.time()
    recent = [moment for moment in commits if now - moment < 600]
    return {
        "folder": str(folder),
        "finished": table_list.exists(folder / "index"),
        "planned_parts": sum(path.suffix in PARTS for path in (folder / ".plan").glob("part-*")),
        "clips": len(planned) if planned is not None else None,
        "planned": len(names) or None,
        "committed": len(commits),
        "shards_per_minute": round(len(recent) / 10, 2) if recent else None,
        "commits": [[moment, number + 1] for number, moment in enumerate(commits)][:: max(1, len(commits) // MOST_RATES)],
        "rejects": rejects(folder, problems),
    }


def rejects(folder: Path, problems: list[str]) -> list[dict[str, Any]]:
    """Return the count of refusals by stage and reason, largest first."""
    table = _columns(folder, "rejects", ["stage", "reason"], problems)
    if table is None:
        return []
    counts = table.group_by(["stage", "reason"]).aggregate([([], "count_all")]).to_pylist()
    rows = [{"stage": row["stage"], "reason": row["reason"], "count": row["count_all"]} for row in counts]
    return sorted(rows, key=lambda row: (-row["count"], row["stage"], row["reason"]))


def _commits(folder: Path) -> Iterator[float]:
    for path in folder.glob("f*/shard-*.parquet"):
        try:
            yield path.stat().st_mtime
        except FileNotFoundError:  # discarded while it was looked at
            continue


def changed(folder: Path, table: str) -> int:
    """Return when a table of the folder was last written, in nanoseconds. Raises FileNotFoundError where there is none."""
    listed = folder / table / table_list.LIST
    return (listed if listed.exists() else folder / f"{table}.parquet").stat().st_mtime_ns


def _columns(folder: Path, table: str, names: list[str], problems: list[str]) -> pa.Table | None:
    """Return columns of a table; None where it is missing or cannot be read."""
    if not table_list.exists(folder / table):
        return None
    try:
        return pa.concat_tables(TableFolder.open(folder / table).tables(names))
    except (OSError, ValueError, KeyError, pa.ArrowException) as error:
        problems.append(f"{folder / table}: {str(error).splitlines()[0]}")
        return None
