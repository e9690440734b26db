from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest

from pipeline.config import CorpusConfig
from pipeline.corpus import fetch, tar_index
from pipeline.corpus.listing import find
from pipeline.video import VideoError

NAMES = ("plain.mp4", "a::b.mp4", "q?x#1.mp4", "[1].mp4", "sub/名 é.mp4", "./dot.mp4", "a.b.c.mp4", "n" * 150 + ".mp4")


@pytest.fixture
def tar(tmp_path: Path) -> Path:
    path = tmp_path / "odd names.tar"
    with tarfile.open(path, "w") as archive:
        for name in NAMES:
            for ending, data in ((".mp4", name.encode() * 3), (".txt", f"caption of {name}".encode())):
                info = tarfile.TarInfo(name.removesuffix(".mp4") + ending)
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("link.mp4")
        link.type, link.linkname = tarfile.LNKTYPE, "plain.mp4"
        archive.addfile(link)
    return path


def check(prefix: str) -> None:
    videos = [video.source for video in find(CorpusConfig(videos=(prefix,)))]
    assert videos == sorted(f"tar://{name}::{prefix}" for name in (*NAMES, "link.mp4"))
    for source in videos:
        name = source.removeprefix("tar://").removesuffix(f"::{prefix}")
        with fetch.local(source) as path:
            assert path.suffix == ".mp4" and path.read_bytes() == name.replace("link", "plain").encode() * 3
        if name != "link.mp4":
            assert fetch.sidecar(source) == f"caption of {name}"


def test_members_of_any_name_are_videos_with_their_captions(tar: Path) -> None:
    check(str(tar))


def test_the_same_behind_a_url(tar: Path) -> None:
    memory = fsspec.filesystem("memory")
    memory.pipe("/tars/odd.tar", tar.read_bytes())
    try:
        check("memory://tars/odd.tar")
    finally:
        memory.rm("/tars", recursive=True)


def test_headers_are_read_once_for_each_state_of_a_tar(tar: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[str] = []

    def counting(**fields: object) -> Iterator[tarfile.TarInfo]:
        opened.append("")
        return original(**fields)  # type: ignore[arg-type, return-value]

    original = tarfile.open
    monkeypatch.setattr(tar_index.tarfile, "open", counting)
    for _ in range(5):
        for name in NAMES:
            assert tar_index.read(name, str(tar)) == name.encode() * 3
    assert len(opened) == 1
    content = tar.read_bytes()
    tar.write_bytes(content)
    os.utime(tar, ns=(1, 1))
    tar_index.read("plain.mp4", str(tar))
    assert len(opened) == 2, "a tar that was replaced is read anew"


def test_chains_of_other_file_systems_are_left_to_fsspec() -> None:
    assert tar_index.split("tar://a.mp4::simplecache::s3://bucket/x.tar") is None
    assert tar_index.split("tar://a.mp4::s3://bucket/x.TAR") == ("a.mp4", "s3://bucket/x.TAR")
    assert tar_index.split("s3://bucket/x.mp4") is None and tar_index.split("a.tar") is None


def test_what_is_gone_or_cut_off_is_the_refusal_of_one_video(tar: Path) -> None:
    cut = tar.with_name("cut.tar")
    cut.write_bytes(tar.read_bytes()[:520])
    for source, reason in (
        (f"tar://absent.mp4::{tar}", "not_found"),
        (f"tar://a.mp4::{tar}.gone.tar", "not_found"),
        ("htp://host/v.mp4", "bad_name"),
    ):
        with pytest.raises(VideoError) as caught, fetch.local(source):
            pass
        assert caught.value.reason == reason, source
    place = tar_index.Place(512, 600)
    with pytest.raises(OSError, match="ends inside of a member"):
        list(tar_index._chunks(str(cut), place))
