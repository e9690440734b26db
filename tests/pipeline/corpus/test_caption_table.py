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


def table(path: Path, content: bytes | str) -> CaptionTable:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return CaptionTable.read(path)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("suffix", ["csv", "jsonl"])
def test_tables_with_a_byte_order_mark(tmp_path: Path, encoding: str, suffix: str) -> None:
    text = "file,caption\r\na.mp4,één\r\n" if suffix == "csv" else '{"file": "a.mp4", "caption": "één"}\n'
    assert table(tmp_path / f"t.{suffix}", text.encode(encoding)).look_up("/x/a.mp4")[0] == "één"


def test_a_table_of_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CaptionError, match=r"t\.csv: not UTF-8: byte 0xe9 in line 2; save it as UTF-8"):
        table(tmp_path / "t.csv", "file,caption\na.mp4,café\n".encode("latin-1"))


def test_separators_inside_of_json_end_no_line(tmp_path: Path) -> None:
    found = table(tmp_path / "t.jsonl", '{"file": "a", "caption": "x\u2028y\u2029z\x85w"}\n{"file": "b", "caption": "v"}\r\n')
    assert found.look_up("a")[0] == "x\u2028y\u2029z\x85w" and found.look_up("b")[0] == "v"


def test_half_characters_become_replacement_characters_and_are_counted(tmp_path: Path) -> None:
    found = table(tmp_path / "t.jsonl", '{"file":"a","caption":"cut \\ud83d"}\n{"file":"b","caption":"\\ud83d\\ude00"}\n')
    assert found.look_up("a")[0] == "cut \ufffd" and found.look_up("b")[0] == "😀" and found.mended == 1


def test_null_and_nan_are_no_captions(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": ["a", "b"], "caption": [float("nan"), 2.0]}), tmp_path / "t.parquet")
    found = CaptionTable.read(tmp_path / "t.parquet")
    assert found.look_up("a")[0] == "" and found.look_up("b")[0] == "2.0"
    found = table(tmp_path / "t.jsonl", '{"file":"a","caption":NaN}\n{"file":"b","caption":null}\n{"file":"c"}\n')
    assert [found.look_up(name)[0] for name in "abc"] == ["", "", ""]


def test_binary_strings_are_text(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": [b"a"], "caption": ["één".encode()]}), tmp_path / "t.parquet")
    assert CaptionTable.read(tmp_path / "t.parquet").look_up("a")[0] == "één"
    pq.write_table(pa.table({"file": ["a"], "caption": [b"\xff"]}), tmp_path / "t.parquet")
    with pytest.raises(CaptionError, match="row 1: `caption` not UTF-8"):
        CaptionTable.read(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.csv",
            "file,caption\na,b\nc,d, e\n",
            "line 3: 3 cells, but the header has 2; put a text that holds a comma into double quotes",
        ),
        ("t.csv", 'file,caption\na,"b\nc,d\n', "line 2: not valid CSV"),
        ("t.csv", "file,caption\n,b\n", "line 2: `file` is empty"),
        ("t.jsonl", '{"file":"a","caption":["x","y"]}\n', "line 1: `caption` holds a list; write one text"),
        ("t.jsonl", '\n{"file":null}\n', "line 2: `file` is empty"),
    ],
)
def test_cells_that_would_be_lost_or_spoilt_are_named(tmp_path: Path, name: str, content: str, message: str) -> None:
    with pytest.raises(CaptionError) as caught:
        table(tmp_path / name, content)
    assert message in str(caught.value) and str(tmp_path / name) in str(caught.value)


def test_a_list_column_of_parquet_is_refused_as_a_caption_and_carried_as_json(tmp_path: Path) -> None:
    pq.write_table(pa.table({"file": ["a"], "caption": ["x"], "tags": [["b", "c"]]}), tmp_path / "t.parquet")
    assert CaptionTable.read(tmp_path / "t.parquet", ["tags"]).look_up("a") == ("x", {"tags": '["b", "c"]'})
    pq.write_table(pa.table({"file": ["a"], "caption": [["x", "y"]]}), tmp_path / "t.parquet")
    with pytest.raises(CaptionError, match="row 1: `caption` holds a list"):
        CaptionTable.read(tmp_path / "t.parquet")


def test_the_first_of_several_rows_counts_and_the_others_are_counted(tmp_path: Path) -> None:
    found = table(tmp_path / "t.csv", "file,caption\na,first\na,second\nb,x\nb,x\na,third\n")
    assert found.look_up("a")[0] == "first" and found.look_up("b")[0] == "x" and found.repeated == 2


def test_a_column_that_a_later_row_lacks_is_empty(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text('{"file":"a","licence":"CC0"}\n{"file":"b"}\n')
    found = CaptionTable.read(path, ["licence"])
    assert found.look_up("a")[1] == {"licence": "CC0"} and found.look_up("b")[1] == {"licence": ""}


def test_long_captions_of_csv_are_read(tmp_path: Path) -> None:
    assert len(table(tmp_path / "t.csv", f'file,caption\na,"{"x" * 300_000}"\n').look_up("a")[0]) == 300_000


@pytest.mark.parametrize(
    ("source", "caption"),
    [("/d/v1.0.mp4", "dots"), ("/d/x.mp4", "bare"), ("tar://p/y.mp4::/t/0.tar", "member"), ("/d/z.mp4", ""), ("/d/v1.mp4", "")],
)
def test_names_without_ending_and_with_dots_and_members_of_tars(tmp_path: Path, source: str, caption: str) -> None:
    assert table(tmp_path / "t.csv", "file,caption\nv1.0,dots\nx,bare\ny.mp4,member\n").look_up(source)[0] == caption
