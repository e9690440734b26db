from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.runtime.atomic_files import DamagedFile, write_json
from pipeline.books import parts
from pipeline.records import Reject
from pipeline.shards.schemas import CLIPS, clip_rows
from tests.helpers.plans import plan


def test_parts_are_read_as_columns_and_older_ones_too(tmp_path: Path) -> None:
    plans = [plan("a", [0, 1]), plan("bad", []), replace(plan("c", [2]), fingerprints=(b"one", b"two"))]
    plans[2] = replace(plans[2], rejects=(Reject("c", "filters", "black", "\udcfc", 1.0, 2.0, {"luma": 3.0}),))
    parts.write_part(tmp_path / "part-000000.arrow", plans)
    write_json(tmp_path / "part-000001.json", [each.plain() for each in plans])
    new, old = (parts.read_part(tmp_path / f"part-00000{number}.arrow") for number in (0, 1))
    assert (
        new.equals(old) and parts.part_exists(tmp_path / "part-000001.arrow") and new["source"].to_pylist() == ["a", "bad", "c"]
    )
    both = parts.read_parts([tmp_path / f"part-00000{number}.arrow" for number in (0, 1)])
    clips = parts.clips_of(both)
    assert clips.video.tolist() == [0, 0, 2, 3, 3, 5]
    names = [name for name in CLIPS.names if name not in ("group", "shard")]
    wanted = clip_rows([clip for each in (*plans, *plans) for clip in each.clips], 0).select(names)
    assert clips.table.to_pylist() == wanted.to_pylist()
    rejects = parts.rejects_of(both)
    assert rejects.video.tolist() == [1, 2, 4, 5] and rejects.table["detail"][1].as_py() == "\\udcfc"
    prints, owners = parts.prints_of(both)
    assert prints.to_pylist() == [b"one", b"two"] * 2 and owners.tolist() == [2, 2, 5, 5]
    assert parts.clips_of(both.slice(1, 1).combine_chunks()).table.num_rows == 0


def test_a_damaged_part_names_the_mend(tmp_path: Path) -> None:
    (tmp_path / "part-000000.arrow").write_bytes(b"ARROW1")
    with pytest.raises(DamagedFile, match=r"part-000000\.arrow: damaged .* remove it and run again"):
        parts.read_part(tmp_path / "part-000000.arrow")
