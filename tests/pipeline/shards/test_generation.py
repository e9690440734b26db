from __future__ import annotations

from pathlib import Path

import pytest

from pipeline.records import SourceVideo
from pipeline.shards import generation as module
from pipeline.shards.generation import Generation
from pipeline.shards.layout import DatasetError
from tests.helpers.plans import plan


def test_a_part_is_a_range_of_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GROUP_ROWS", 4)
    monkeypatch.setattr(module, "FILE_ROWS", 8)
    videos = [SourceVideo(f"v{n}", f"caption {n}", {"licence": str(n)}, "odd" * (n == 3)) for n in range(21)]
    again = [plan("v3", [1]).clips[0]]
    made = Generation.write(tmp_path, 5, 17, zip(videos, [0, 1, 2] * 7, strict=True), again)
    found = Generation.open(tmp_path)
    assert found == made and (made.count, made.number, made.first_group) == (21, 5, 17)
    assert len(list((tmp_path / ".plan" / "videos").glob("*.parquet"))) == 3 and made.clips == tuple(again)
    for size in (1, 5, 7, 21, 30):
        assert [video for part in range(-(-21 // size)) for video in made.part(part, size)] == videos
    assert made.before(3, 9).to_pylist() == [0, 1, 2, 0, 1, 2] and len(made.again()) == 14
    assert made != Generation.write(tmp_path, 5, 17, zip(videos[1:], [0, 1, 2] * 7), again)
    empty = Generation.write(tmp_path, 6, 0, [], again)
    assert (empty.count, empty.videos, empty.clips) == (0, (), tuple(again))


def test_a_damaged_row_group_is_one_line_with_the_mend(tmp_path: Path) -> None:
    made = Generation.write(tmp_path, 1, 0, [(SourceVideo(f"v{n}"), 0) for n in range(100)], [])
    (path,) = (tmp_path / ".plan" / "videos").glob("*.parquet")
    data = bytearray(path.read_bytes())
    data[200] ^= 255
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=r"0001-000000\.parquet: damaged .*remove .*videos: the next run .* lists the corpus anew"
    ):
        Generation.write  # noqa: B018
        list(Generation.open(tmp_path).listed())  # type: ignore[union-attr]
    path.unlink()
    with pytest.raises(ValueError, match=r"0001-000000\.parquet: missing"):
        list(made.part(0, 10) or Generation.open(tmp_path).part(0, 10))  # type: ignore[union-attr]
    (path.parent / "files.json").write_text("{")
    with pytest.raises(DatasetError, match=r"files\.json: not valid JSON"):
        Generation.open(tmp_path)
