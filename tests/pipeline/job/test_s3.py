"""A real S3 server on loopback: its errors cost tries, not data."""

from __future__ import annotations

import os
import time
import zipfile
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import fsspec
import pytest
import s3fs
from moto.backends import get_backend
from moto.core import DEFAULT_ACCOUNT_ID

from cluster.runtime import remote_files
from pipeline.config import CorpusConfig
from pipeline.corpus import bucket_listing, fetch, spilled_names
from pipeline.corpus.listing import CorpusError, find
from pipeline.corpus.spilled_names import SpilledNames
from pipeline.corpus.store_pages import without_times
from pipeline.video import VideoError
from tests.helpers import s3_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[s3_server.Unreliable]:
    for name in ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION", "AWS_SESSION_TOKEN"):
        monkeypatch.setenv(name, "")  # so that monkeypatch puts back what was there
    monkeypatch.delenv("AWS_SESSION_TOKEN")
    with s3_server.serving(os.environ) as app:
        yield app


def test_faults_cost_tries_not_data(server: s3_server.Unreliable, clips: Path, tmp_path: Path) -> None:
    """Over a good server, a bad one and a local folder: the same samples, captions and refusals."""
    files = [(f"{path.stem}.mp4", path.read_bytes()) for path in sorted(clips.glob("*.mp4"))]
    files += [("again/carphone.mp4", files[-1][1]), ("empty.mp4", b""), ("broken.mp4", files[0][1][:5000])]
    files += [(f"{name.removesuffix('.mp4')}.txt", f"caption of {name}".encode()) for name, _ in files[:3]]
    s3_server.fill("corpus", files)
    for name, data in files:
        path = tmp_path / "corpus" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    local = s3_server.job(str(tmp_path / "corpus"), tmp_path / "local")
    server.counts.clear()
    good = s3_server.job("s3://corpus/", tmp_path / "good")
    assert good[1:] == local[1:] and len(good[1]) > 10 and good[2] == 7
    calm = server.counts["requests"]
    server.counts.clear()
    server.every = 3
    assert s3_server.job("s3://corpus/", tmp_path / "bad") == good
    assert all(server.counts[kind] for kind in s3_server.KINDS), f"no fault of some kind: {server.counts}"
    assert server.counts["requests"] > calm, "faults cost tries"


def test_videos_in_an_archive_in_a_bucket(server: s3_server.Unreliable, clips: Path, tmp_path: Path) -> None:
    """The same samples as from the archive on disk."""
    archive = tmp_path / "videos.zip"
    with zipfile.ZipFile(archive, "w") as file:
        for path in sorted(clips.glob("*.mp4"))[:2]:
            file.write(path, f"day/{path.name}")
    s3_server.fill("archives", [("videos.zip", archive.read_bytes())])
    local = s3_server.job(f"zip://**/*.mp4::{archive}", tmp_path / "local")
    assert len(local[1]) > 1
    assert s3_server.job("zip://**/*.mp4::s3://archives/videos.zip", tmp_path / "remote")[1:] == local[1:]


def test_what_a_dead_or_foreign_server_says(server: s3_server.Unreliable, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line each: a bucket that is not there, an object that is not there, a server that only fails."""
    with pytest.raises(CorpusError, match=r"corpus\.videos: .*nobucket") as caught:
        find(CorpusConfig(videos=("s3://nobucket/",)))
    assert "\n" not in str(caught.value)
    s3_server.fill("here", [("a.mp4", b"123")])
    with pytest.raises(VideoError) as gone, fetch.local("s3://here/b.mp4"):
        pass
    assert gone.value.reason == "not_found"
    with fsspec.open("s3://here/a.mp4") as file:
        assert file.read() == b"123"
    monkeypatch.setattr(remote_files, "_PAUSE", 0.0)
    monkeypatch.setattr(remote_files, "_TRIES", 2)
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    s3fs.S3FileSystem.clear_instance_cache()
    server.every = 1
    began = time.monotonic()
    with pytest.raises(VideoError) as dead, fetch.local("s3://here/a.mp4"):
        pass
    assert dead.value.reason == "unreachable" and "s3://here/a.mp4" in str(dead.value) and time.monotonic() - began < 20


def test_a_flat_prefix_is_listed_page_by_page_and_goes_on_after_a_failure(
    server: s3_server.Unreliable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A thousand names a page, as a real server cuts them: what is on disk when the keys expire is not asked for again."""
    monkeypatch.setattr(spilled_names, "ROWS", 1000)
    names = [f"v{number:04d}é.mp4" for number in range(3500)]
    s3_server.fill("flat", [])
    for name in names:  # past HTTP, which takes 30 s
        get_backend("s3")[DEFAULT_ACCOUNT_ID]["aws"].put_object("flat", name, b"")
    filesystem = s3fs.S3FileSystem()
    real, asked = s3fs.S3FileSystem.call_s3, [0]

    def call(self: s3fs.S3FileSystem, method: str, **request: str) -> object:
        asked[0] += method == "list_objects_v2"
        if asked[0] == 3 and not again:
            raise PermissionError("the keys have expired")
        return real(self, method, **request)

    again: list[int] = []
    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", call)
    kept = SpilledNames(tmp_path)
    with pytest.raises(PermissionError, match="expired"):
        list(bucket_listing.find(filesystem, "flat", kept))
    assert kept.files == 2
    again.append(1)
    asked[0] = 0
    assert list(bucket_listing.find(filesystem, "flat", kept)) == [f"flat/{name}" for name in names]
    assert asked[0] == 2, "two of four pages are left"
    s3fs.S3FileSystem.clear_instance_cache()
    assert [video.source for video in find(CorpusConfig(videos=("s3://flat",)))] == [f"s3://flat/{name}" for name in names]


def test_a_listing_does_not_read_the_times_of_objects(server: s3_server.Unreliable) -> None:
    """They take most of its CPU time; whoever else uses the file system gets them as before."""
    s3_server.fill("timed", [("a.mp4", b"123")])
    filesystem = s3fs.S3FileSystem(requester_pays=True)
    listing = without_times(filesystem)
    assert isinstance(filesystem.ls("timed", detail=True)[0]["LastModified"], datetime)
    assert isinstance(listing.ls("timed", detail=True)[0]["LastModified"], str) and listing.req_kw == filesystem.req_kw
    other = fsspec.filesystem("memory")
    assert without_times(other) is other


def test_a_key_with_an_empty_folder_in_it_is_listed_and_fetched(server: s3_server.Unreliable) -> None:
    names = ["a//b.mp4", "a/c.mp4", "d.mp4"]
    s3_server.fill("odd", [(name, name.encode()) for name in names])
    found = [video.source for video in find(CorpusConfig(videos=("s3://odd/",)))]
    assert found == [f"s3://odd/{name}" for name in names]
    for name, source in zip(names, found, strict=True):
        with fetch.local(source) as path:
            assert path.read_bytes() == name.encode()


def test_a_pattern_is_listed_as_a_folder_is(server: s3_server.Unreliable, monkeypatch: pytest.MonkeyPatch) -> None:
    """What s3fs's glob finds, every third request failing; of another year's folder nothing is asked."""
    names = ["a//b.mp4", "a/c.mp4", "d.mp4", "2023-12/clips/5.mp4"]
    names += ["2024-01/clips/1.mp4", "2024-01/clips/22.mp4", "2024-02/clips/3.mp4", "2024-02/x/y/4.mp4"]
    s3_server.fill("tree", [(name, b"") for name in names])
    filesystem = s3fs.S3FileSystem()
    patterns = ("*.mp4", "*/*.mp4", "**/*.mp4", "2024-*/clips/?.mp4", "2024-*/**/*.mp4", "a/**", "[!2]*/*")
    wanted = {
        pattern: sorted(name for name in filesystem.glob(f"tree/{pattern}") if filesystem.isfile(name)) for pattern in patterns
    }
    real, asked = s3fs.S3FileSystem.call_s3, []

    def call(self: s3fs.S3FileSystem, method: str, **request: str) -> object:
        asked.append(request.get("Prefix", ""))
        return real(self, method, **request)

    monkeypatch.setattr(s3fs.S3FileSystem, "call_s3", call)
    monkeypatch.setattr(s3fs.S3FileSystem, "glob", None)
    server.every = 3
    for pattern, matches in wanted.items():
        s3fs.S3FileSystem.clear_instance_cache()
        asked.clear()
        found = [video.source for video in find(CorpusConfig(videos=(f"s3://tree/{pattern}",)))]
        assert found == [f"s3://{name}" for name in matches] != [], pattern
        assert asked and not (pattern.startswith("2024") and any(prefix.startswith("2023") for prefix in asked))
