from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import CorpusConfig
from pipeline.corpus import fetch
from pipeline.corpus.caption_table import CaptionError
from pipeline.corpus.listing import CorpusError, find, survey
from pipeline.video import VideoError


def names(*videos: object, **fields: object) -> list[str]:
    return [video.source for video in find(CorpusConfig(videos=tuple(str(v) for v in videos), **fields))]  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.mp4", "a.MP4", "notes.txt", ".hidden.mp4", "sub/c.webm", "sub/deep/d.mkv"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return tmp_path


def test_folders_are_walked_in_sorted_order(folder: Path) -> None:
    assert names(folder) == [str(folder / name) for name in ("a.MP4", "b.mp4", "sub/c.webm", "sub/deep/d.mkv")]


def test_files_globs_and_repeats(folder: Path) -> None:
    assert names(folder / "sub" / "c.webm", folder) == [
        str(folder / name) for name in ("sub/c.webm", "a.MP4", "b.mp4", "sub/deep/d.mkv")
    ]
    assert names(f"{folder}/**/*.mkv") == [str(folder / "sub/deep/d.mkv")]
    assert names(folder, extensions=(".webm",)) == [str(folder / "sub/c.webm")]


@pytest.mark.parametrize("entry", ["nothing", "nothing/*.mp4", "sub/deep/*.mp4"])
def test_an_entry_without_video_is_one_clear_error(folder: Path, entry: str) -> None:
    with pytest.raises(CorpusError, match="corpus.videos: .*" + entry.split("*")[0]) as caught:
        names(folder, folder / entry)
    assert "\n" not in str(caught.value)


def test_a_folder_with_no_video_names_the_extensions(tmp_path: Path) -> None:
    (tmp_path / "readme.txt").touch()
    with pytest.raises(CorpusError, match=r"holds no video \(extensions that count: \.mp4"):
        names(tmp_path)
    with pytest.raises(CorpusError, match=r"corpus\.videos is empty"):
        names()


def test_an_unreadable_folder_is_an_error(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Simulated, since root, as whom the tests may run, reads every folder."""
    listed = os.scandir

    def refuse(path: str) -> object:
        if Path(path).name == "sub":
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(CorpusError, match=r"cannot list .*sub: Permission denied"):
        names(folder)


def test_fsspec_urls_are_listed_and_copied(clips: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/corpus/z.mp4", (clips / "carphone_distorted.mp4").read_bytes())
    memory.pipe("/corpus/sub/y.mp4", b"12")
    memory.pipe("/corpus/readme.md", b"")
    memory.pipe("/corpus/z.txt", b"a man in a car\n")
    try:
        assert names("memory://corpus") == ["memory:///corpus/sub/y.mp4", "memory:///corpus/z.mp4"]
        assert names("memory://corpus/*.mp4") == ["memory:///corpus/z.mp4"]
        assert names("memory://corpus/z.mp4") == ["memory://corpus/z.mp4"]
        assert fetch.sidecar("memory://corpus/z.mp4") == "a man in a car" and fetch.sidecar("memory://corpus/sub/y.mp4") == ""
        with fetch.local("memory://corpus/z.mp4") as path:
            assert path.suffix == ".mp4" and path.read_bytes() == (clips / "carphone_distorted.mp4").read_bytes()
        assert not path.exists()
        with pytest.raises(VideoError) as caught, fetch.local("memory://corpus/absent.mp4"):
            pass
        assert caught.value.reason == "not_found"
        with pytest.raises(CorpusError, match="holds no video"):
            names("memory://nothing-here")
    finally:
        memory.rm("/corpus", recursive=True)
    with pytest.raises(CorpusError, match="nosuch"):
        names("nosuch://bucket/x")


def test_captions_and_columns(folder: Path) -> None:
    table = folder / "table.csv"
    table.write_text('file,caption,licence\nb.mp4,a bee,CC0\nsub/c.webm,"a sea, wide",MIT\n')
    found = find(CorpusConfig(videos=(str(folder),), captions=str(table), columns=("licence",)))
    assert [(v.caption, v.extra) for v in found] == [
        ("", {}),
        ("a bee", {"licence": "CC0"}),
        ("a sea, wide", {"licence": "MIT"}),
        ("", {}),
    ]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_lists_of_videos_carry_captions_and_columns(folder: Path, suffix: str) -> None:
    rows = [
        {"file": "b.mp4", "caption": "a bee", "licence": "CC0"},
        {"file": "s3://bucket/x.mp4", "caption": "", "licence": "MIT"},
    ]
    path = folder / f"list.{suffix}"
    if suffix == "csv":
        path.write_text("file,caption,licence\nb.mp4,a bee,CC0\ns3://bucket/x.mp4,,MIT\n")
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    found = find(CorpusConfig(videos=(str(path),), columns=("licence",)))
    assert [(v.source, v.caption, v.extra["licence"]) for v in found] == [
        (str(folder / "b.mp4"), "a bee", "CC0"),
        ("s3://bucket/x.mp4", "", "MIT"),
    ]


def test_webdataset_tars_of_videos(tmp_path: Path, clips: Path) -> None:
    """As video2dataset writes them: KEY.mp4 with KEY.txt or KEY.json beside it."""
    content = (clips / "carphone_distorted.mp4").read_bytes()
    members = {"0001.mp4": content, "0001.json": b'{"caption": "from json"}', "0002.mp4": content, "0002.txt": b"from txt"}
    members |= {"0002.json": b"not json", "0003.mp4": content, "0003.json": b"[1]"}
    for name in ("00000.tar", "00001.tar"):
        with tarfile.open(tmp_path / name, "w") as tar:
            for member, data in members.items():
                header = tarfile.TarInfo(member)
                header.size = len(data)
                tar.addfile(header, io.BytesIO(data))
    found = find(CorpusConfig(videos=(f"{tmp_path}/*.tar",)))
    assert len(found) == 6 and found[0].source == f"tar://0001.mp4::{tmp_path}/00000.tar"
    assert [fetch.sidecar(video.source) for video in found[:2]] == ["from json", "from txt"]
    with pytest.raises(VideoError, match="not a JSON object") as caught:
        fetch.sidecar(found[2].source)
    assert caught.value.reason == "bad_caption"
    with fetch.local(found[4].source) as path:
        assert path.read_bytes() == content and path.suffix == ".mp4"
    (tmp_path / "broken.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(CorpusError, match=r"cannot read .*broken\.tar"):
        names(tmp_path / "broken.tar")


def test_captions_are_counted_and_a_table_that_fits_no_video_is_an_error(folder: Path) -> None:
    table = folder / "t.csv"
    table.write_text("file,caption\nb,a bee\nb,a wasp\nother.mp4,x\nc.webm,\n")
    notes = survey(CorpusConfig(videos=(str(folder),), captions=str(table))).notes
    assert notes[-1] == (
        "captions: 1 of 4 videos have one in the tables; 1 rows match no video; 1 rows repeat a file with other content (the first counts)"
    )
    table.write_text("file,caption\nother.mp4,x\n")
    with pytest.raises(
        CorpusError, match=r"none of its 1 rows belongs to a video \(its first `file` is other\.mp4, the first video is"
    ):
        survey(CorpusConfig(videos=(str(folder),), captions=str(table)))


def test_a_list_behind_a_url_names_its_neighbours() -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/lists/a.jsonl", b'{"file": "v.mp4", "caption": "one"}\n{"file": "s3://b/w.mp4"}\n')
    try:
        found = find(CorpusConfig(videos=("memory://lists/a.jsonl",)))
        assert [(v.source, v.caption) for v in found] == [("memory://lists/v.mp4", "one"), ("s3://b/w.mp4", "")]
    finally:
        memory.rm("/lists", recursive=True)


def test_a_table_gives_the_captions_that_a_list_lacks(folder: Path) -> None:
    (folder / "l.csv").write_text("file,caption\nb.mp4,\nsub/c.webm,own\n")
    (folder / "t.csv").write_text("file,caption\nb.mp4,a bee\nsub/c.webm,other\n")
    found = find(CorpusConfig(videos=(str(folder / "l.csv"),), captions=str(folder / "t.csv")))
    assert [v.caption for v in found] == ["a bee", "own"]


def test_a_parquet_list_with_a_damaged_row_group_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "list.parquet"
    rows = pa.table({"file": [f"{n}.mp4" for n in range(4000)], "caption": [f"caption {n}" for n in range(4000)]})
    pq.write_table(rows, path, row_group_size=1000, write_page_checksum=True)
    assert len(find(CorpusConfig(videos=(str(path),)))) == 4000
    place = pq.read_metadata(path).row_group(2).column(0)
    data = bytearray(path.read_bytes())
    begin = place.dictionary_page_offset or place.data_page_offset
    data[begin + place.total_compressed_size // 2] ^= 255
    path.write_bytes(data)
    with pytest.raises(CaptionError, match=r"list\.parquet: not a readable caption table: .*; write it anew"):
        find(CorpusConfig(videos=(str(path),)))
