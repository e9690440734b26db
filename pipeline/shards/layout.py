"""The output folder as a ledger: one writer at a time, files that appear whole or not at all, one configuration.

In:  the SHARDS folder.
Out: a lock, atomic files, dataset.json, and what is planned and committed.
Called by: pipeline.ray_job, pipeline.shards, pipeline.verify.

Order of commitment: dataset.json; plan parts; clips.parquet and rejects.parquet; for each shard its tar, then its
parquet (the commit record); index.parquet last. A reader trusts index.parquet only.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass

FORMAT = 1
DATASET, CLIPS, REJECTS, INDEX = "dataset.json", "clips.parquet", "rejects.parquet", "index.parquet"
PLAN, LOCK, PRINTS, ADDRESS = ".plan", ".lock", ".prints.parquet", "metrics-address"
SOURCES = "sources.json"


def remove_leftovers(folder: Path) -> None:
    """Remove temporary files of writers that were killed; call with the lock held."""
    for pattern in (".*.tmp", "*/.*.tmp", f"{PLAN}/.*.tmp"):
        for path in folder.glob(pattern):
            path.unlink(missing_ok=True)


META = b"videoar"


class DatasetError(ValueError):
    """A folder that is no finished dataset; the message names it and the mend."""
