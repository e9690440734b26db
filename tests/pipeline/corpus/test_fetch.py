from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import fsspec
import pytest
import xxhash

from pipeline.corpus import fetch
from pipeline.corpus.fetch import content_digest, sidecar
from pipeline.video import VideoError, probe


def test_a_remote_video_is_local_for_as_long_as_the_context_lasts(tmp_path: Path) -> None:
    with fetch.local(str(tmp_path / "a.mp4")) as path:
        assert path == tmp_path / "a.mp4", "a local name is taken as it is"
    memory = fsspec.filesystem("memory")
    memory.pipe("/fetched/a.mp4", b"not really a video")
    try:
        with fetch.local("memory://fetched/a.mp4") as path:
            assert path.suffix == ".mp4" and path.read_bytes() == b"not really a video"
        assert not path.exists()
        with pytest.raises(VideoError, match="not found") as caught, fetch.local("memory://fetched/b.mp4"):
            pass
        assert caught.value.reason == "not_found"
    finally:
        memory.rm("/fetched", recursive=True)


def test_the_digest_is_over_the_bytes(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(bytes(range(256)) * 8192)
    assert content_digest(path) == xxhash.xxh3_128_hexdigest(path.read_bytes())
    with pytest.raises(VideoError) as caught:
        content_digest(tmp_path / "absent.mp4")
    assert caught.value.reason == "not_found"


def test_a_caption_that_cannot_be_read_is_no_missing_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "folder.txt").mkdir()
    assert sidecar(str(tmp_path / "folder.mp4")) == "" and sidecar(str(tmp_path / "none.mp4")) == ""
    for kind, reason in ((PermissionError(13, "Permission denied"), "no_permission"), (OSError(5, "I/O error"), "unreadable")):

        def fail(*_: object, error: OSError = kind, **__: object) -> str:
            raise error

        with monkeypatch.context() as patch:
            patch.setattr(Path, "read_bytes", fail)
            with pytest.raises(VideoError, match=r"a\.txt \(the caption beside the video\)") as caught:
                sidecar(str(tmp_path / "a.mp4"))
        assert caught.value.reason == reason


def test_a_pipe_that_calls_itself_a_video_hangs_nobody(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(VideoError, match="not a regular file") as caught:
        content_digest(tmp_path / "a.mp4")
    assert caught.value.reason == "unreadable"
    with pytest.raises(VideoError, match="not a regular file"):
        probe(tmp_path / "a.mp4")


@pytest.mark.parametrize(
    ("name", "content", "caption"),
    [
        ("a.txt", "één\n".encode("utf-16"), "één"),
        ("a.txt", b"\xef\xbb\xbfone\n", "one"),
        ("a.json", b'\xef\xbb\xbf{"caption": "two"}', "two"),
        ("a.json", b'{"caption": null, "text": "three"}', "three"),
        ("a.json", b'{"caption": "cut \\ud83d"}', "cut \ufffd"),
        ("a.json", b'{"width": 3}', ""),
        ("a.json", b"", ""),
    ],
)
def test_captions_beside_a_video(tmp_path: Path, name: str, content: bytes, caption: str) -> None:
    (tmp_path / name).write_bytes(content)
    assert sidecar(str(tmp_path / "a.mp4")) == caption


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"caf\xe9", "not UTF-8"),
        ("a.json", b'{"caption": ', "not valid JSON"),
        ("a.json", b'["x"]', "not a JSON object"),
        ("a.json", b'{"caption": ["x", "y"]}', "`caption` holds a list"),
    ],
)
def test_a_caption_that_is_no_text_is_the_refusal_of_its_video(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(VideoError, match=message) as caught:
        sidecar(str(tmp_path / "a.mp4"))
    assert caught.value.reason == "bad_caption" and name in str(caught.value)


def test_a_sample_of_a_tar_has_its_caption_by_the_name_before_the_first_dot(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name, data in (("k.left.mp4", b"x"), ("k.txt", b"both"), ("m.left.mp4", b"x"), ("m.left.json", b'{"text": "own"}')):
            header = tarfile.TarInfo(name)
            header.size = len(data)
            tar.addfile(header, io.BytesIO(data))
    assert [sidecar(f"tar://{name}.left.mp4::{tmp_path}/t.tar") for name in "km"] == ["both", "own"]


def test_a_file_that_changes_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    path.write_bytes(b"one")
    file, digest = fetch.Identity(path), content_digest(path)
    file.check()
    file.check_content(digest)
    path.write_bytes(b"other")
    for check in (file.check, lambda: fetch.Identity(path).check_content(digest)):
        with pytest.raises(VideoError, match="--retry") as caught:
            check()
        assert caught.value.reason == "changed"
