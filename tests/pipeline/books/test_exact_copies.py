from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.books import exact_copies
from pipeline.books.parts import write_part
from pipeline.records import VideoPlan


@pytest.mark.parametrize("count", [1, 2, 16])
def test_the_first_video_keeps_its_content_in_any_number_of_partitions(tmp_path: Path, count: int) -> None:
    digests = [f"{n * 0x123456789ABCDEF0FEDCBA9876543210 % (1 << 128):032x}" for n in (1, 2, 1, 3, 1, 2)]
    plans = [VideoPlan(f"v{n}", digest, (), ()) for n, digest in enumerate([*digests, "", ""])]
    spills = []
    for number, part in enumerate((plans[:3], plans[3:])):
        write_part(tmp_path / f"part-{number}.arrow", part)
        spills.append(tmp_path / f"spill-{number}.arrow")
        exact_copies.scatter_videos([tmp_path / f"part-{number}.arrow"], 3 * number, spills[-1], count)
    outs = [tmp_path / f"out-{partition}.arrow" for partition in range(count)]
    assert sum(exact_copies.find(partition, spills, out) for partition, out in enumerate(outs)) == 3
    wanted = [(2, "v0", 1), (4, "v0", 2), (5, "v1", 1)]
    rows = exact_copies.copies_of(outs, 0, 8).to_pylist()
    assert [(row["video"], row["first"], row["before"]) for row in rows] == wanted, "videos without a digest are no copies"
    assert exact_copies.copies_of(outs, 3, 5)["video"].to_pylist() == [4]


def test_partitions_are_a_power_of_two_that_follows_the_videos() -> None:
    size = exact_copies.PARTITION_ROWS
    found = [exact_copies.partitions(count) for count in (0, 1, size, size + 1, 10 * size, 100_000_000)]
    assert found == [1, 1, 1, 2, 16, 128]
