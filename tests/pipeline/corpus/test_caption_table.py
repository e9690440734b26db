from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.corpus.caption_table import CaptionError, CaptionTable

ROWS = [{"file": "a.mp4", "caption": "één, twee", "origin": "x"}, {"file": "sub/a.mp4", "caption": "zwei", "origin": "y"}]


def write(path: Path) -> Path:
    if path.suffix == ".csv":
        path.write_text('file,caption,origin\na.mp4,"één, twee",x\nsub/a.mp4,zwei,y\n')
    elif path.suffix == ".jsonl":
        path.write_text(
            '{"file": "a.mp4", "caption": "één, twee", "origin": "x"}\n\n{"file": "sub/a.mp4", "caption": "zwei", "origin": "y"}\n'
        )
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    return path


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_all_forms_read_alike(tmp_path: Path, suffix: str) -> None:
    table = CaptionTable.read(write(tmp_path / f"t.{suffix}"), ["origin"])
    assert table.look_up("/data/a.mp4") == ("één, twee", {"origin": "x"})
    assert table.look_up("/data/sub/a.mp4") == ("zwei", {"origin": "y"}), "the longest ending wins"
    assert table.look_up("s3://bucket/sub/a.mp4") == ("zwei", {"origin": "y"})
    assert table.look_up("/data/b.mp4") == ("", {})


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.txt", "x", "must end in .csv, .jsonl or .parquet"),
        ("t.csv", "name,caption\nx,y\n", "no column `file`; the table has caption, name"),
        ("t.jsonl", '{"file": "a"}\n{"file": \n', "t.jsonl:2: not valid JSON"),
        ("t.jsonl", '["a"]\n', "t.jsonl:1: each line must be an object"),
        ("t.parquet", "no parquet", "not a readable caption table"),
    ],
)
def test_broken_tables_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(CaptionError) as caught:
        CaptionTable.read(tmp_path / name)
    assert message in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_missing_table_and_column(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match="No such file"):
        CaptionTable.read(tmp_path / "absent.csv")
    with pytest.raises(CaptionError, match="no column `licence`"):
        CaptionTable.read(write(tmp_path / "t.csv"), ["licence"])
