from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.monitor import shards
from pipeline.books.parts import write_part
from tests.helpers.plans import finished, merged, plan


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "shards"
    (place / "f009x64x64").mkdir(parents=True)
    (place / ".plan").mkdir()
    (place / "dataset.json").write_text("{}")
    return place


def test_progress_from_planning_to_the_end(folder: Path) -> None:
    problems: list[str] = []
    (folder / ".plan" / "part-000000.json").write_text("{}")
    found = shards.progress(folder, problems)
    assert (found["planned"], found["clips"], found["planned_parts"], found["committed"]) == (None, None, 1, 0)
    names = [f"f009x64x64/shard-{number:06d}" for number in (0, 0, 1, 2)]
    pq.write_table(pa.table({"shard": names}), folder / "clips.parquet")
    rejects = {"stage": ["probe", "plan", "plan"], "reason": ["broken", "short", "short"]}
    pq.write_table(pa.table(rejects), folder / "rejects.parquet")
    (folder / "f009x64x64" / "shard-000000.parquet").write_bytes(b"")
    found = shards.progress(folder, problems)
    assert (found["planned"], found["clips"], found["committed"], found["finished"]) == (3, 4, 1, False)
    assert found["commits"][0][1] == 1
    assert found["rejects"][0] == {"stage": "plan", "reason": "short", "count": 2}
    (folder / "index.parquet").write_bytes(b"")
    assert shards.progress(folder, problems)["finished"]
    assert not problems


def test_folders_as_they_are_written_now(tmp_path: Path) -> None:
    merged(tmp_path, [plan("v/a", [0, 1, 2, 3]), plan("bad", [])])
    write_part(tmp_path / ".plan" / "part-000000.arrow", [plan("v/c", [7])])
    problems: list[str] = []
    found = shards.progress(tmp_path, problems)
    assert (found["planned"], found["clips"], found["planned_parts"], found["finished"]) == (2, 4, 1, False)
    assert found["rejects"] == [{"stage": "probe", "reason": "unreadable", "count": 1}]
    done = shards.progress(finished(tmp_path / "done"), problems)
    assert done["finished"] and done["committed"] == done["planned"] == 3 and not problems


def test_a_half_written_table_is_named(folder: Path) -> None:
    (folder / "clips.parquet").write_bytes(b"PAR1 half")
    problems: list[str] = []
    assert shards.progress(folder, problems)["planned"] is None
    assert len(problems) == 1 and str(folder / "clips.parquet") in problems[0]


def test_where_a_run_has_its_shards(folder: Path, tmp_path: Path) -> None:
    assert shards.folders(tmp_path, {}) == [folder]
    assert shards.folders(folder, {}) == [folder]
    assert shards.folders(tmp_path, {"pipeline": {"output": str(folder)}}) == [folder]
    assert shards.folders(tmp_path, {"pipeline": {"output": "s3://bucket/x"}}) == [folder]
    assert shards.folders(tmp_path / "other", {"pipeline": {"output": str(folder)}}) == [folder]
    assert shards.folders(tmp_path / "other", {"pipeline": None}) == []
