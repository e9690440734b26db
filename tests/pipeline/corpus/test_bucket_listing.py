from __future__ import annotations

import threading
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from pipeline.config import CorpusConfig
from pipeline.corpus import bucket_listing
from pipeline.corpus.folders import CorpusError
from pipeline.corpus.listing import find
from pipeline.corpus.url_pattern import UrlPattern

NAMES = (
    "a.mp4", "a/b.mp4", "a/b/c.mp4", "a/b/d/e/f/g/h.mp4", "a-b.mp4", "a0.mp4", "b/1.mp4", "b/10.mp4", "b/2.mp4", "z/é.mp4", "z/y x.mp4",
)  # fmt: skip


@pytest.fixture
def store() -> MemoryFileSystem:
    filesystem: MemoryFileSystem = fsspec.filesystem("memory")
    filesystem.store.clear()
    filesystem.pseudo_dirs[:] = [""]
    for name in NAMES:
        filesystem.pipe(f"/bucket/{name}", b"x")
    return filesystem


@pytest.mark.parametrize("enough", [1, 2, 3, 64])
def test_any_division_finds_what_one_listing_finds(
    store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, enough: int
) -> None:
    monkeypatch.setattr(bucket_listing, "ENOUGH", enough)
    assert list(bucket_listing.find(store, "/bucket")) == sorted(store.find("/bucket")) and len(NAMES) == 11
    assert list(bucket_listing.find(store, "/bucket/a.mp4")) == ["/bucket/a.mp4"]
    found = [video.source for video in find(CorpusConfig(videos=("memory://bucket",)))]
    assert found == [f"memory:///bucket/{name}" for name in sorted(NAMES)]


def test_prefixes_are_listed_at_the_same_time(store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"/many/{number:03d}/v.mp4" for number in range(bucket_listing.ENOUGH)]
    for name in names:
        store.pipe(name, b"x")
    together, real = threading.Barrier(bucket_listing.CONNECTIONS), store.find

    def met(path: str, **options: Any) -> Any:
        together.wait(20)  # breaks unless as many connections list at once
        return real(path, **options)

    monkeypatch.setattr(store, "find", met)
    assert list(bucket_listing.find(store, "/many")) == names


def test_each_request_is_tried_again_by_itself(store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def flaky(name: str) -> Any:
        real = getattr(store, name)

        def call(path: str, **options: Any) -> Any:
            key = f"{name} {path}"
            asked.append(key)
            if asked.count(key) == 1:
                raise ConnectionResetError(path)
            return real(path, **options)

        return call

    for name in ("ls", "find"):
        monkeypatch.setattr(store, name, flaky(name))
    monkeypatch.setattr(bucket_listing, "DEEPEST", 1)
    monkeypatch.setattr("cluster.runtime.remote_files.time.sleep", lambda seconds: None)
    assert list(bucket_listing.find(store, "/bucket")) == sorted(f"/bucket/{name}" for name in NAMES)
    assert {asked.count(each) for each in ("ls /bucket", "find /bucket/a", "find /bucket/b")} == {2}


def test_markers_of_folders_are_no_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    class Store:
        """A store that lists a folder's own marker, as S3 does."""

        def invalidate_cache(self) -> None:
            pass

        def ls(self, path: str, detail: bool) -> list[dict[str, Any]]:
            return [
                {"name": "b/v/", "type": "directory"},
                {"name": "b/v/1.mp4", "type": "file"},
                {"name": "b/v/", "type": "file"},
            ]

        def find(self, path: str) -> list[str]:
            raise AssertionError("nothing is left to list")

    assert list(bucket_listing.find(Store(), "b/v")) == ["b/v/1.mp4"]


PATTERNS = (
    "**/*.mp4", "*.mp4", "*/*.mp4", "a/**/*.mp4", "a/**", "?/*.mp4", "[ab]/1*.mp4", "a/b/*/e/**/h.mp4", "*/b/*.mp4", "[!a]*/*", "z/*é.mp4",
    "absent/*.mp4", "a/b/d/e/f/g/h.*",
)  # fmt: skip


@pytest.mark.parametrize("enough", [1, 64])
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_finds_the_files_that_glob_finds(
    store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch, pattern: str, enough: int
) -> None:
    monkeypatch.setattr(bucket_listing, "ENOUGH", enough)
    wanted = sorted(name for name in store.glob(f"/bucket/{pattern}") if store.isfile(name))
    monkeypatch.setattr(store, "glob", lambda *words: pytest.fail("asked for everything at once"))
    inner = UrlPattern(f"/bucket/{pattern}")
    assert list(bucket_listing.find(store, inner.root, pattern=inner)) == wanted
    assert wanted or pattern.startswith("absent")
    if wanted:
        found = [video.source for video in find(CorpusConfig(videos=(f"memory://bucket/{pattern}",)))]
        assert found == [f"memory://{name}" for name in wanted]


def test_folders_that_cannot_hold_a_match_are_not_asked_for(store: MemoryFileSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    for name in ("ls", "find"):
        real = getattr(store, name)
        monkeypatch.setattr(store, name, lambda path, *, real=real, **words: (asked.append(path), real(path, **words))[1])

    def asked_for(pattern: str) -> list[str]:
        asked.clear()
        inner = UrlPattern(f"/bucket/{pattern}")
        list(bucket_listing.find(store, inner.root, pattern=inner))
        return sorted(set(asked))

    assert asked_for("*.mp4") == ["/bucket"]
    assert asked_for("[bz]/*.mp4") == ["/bucket", "/bucket/b", "/bucket/z"]
    assert asked_for("a/*/*.mp4") == ["/bucket/a", "/bucket/a/b"]
    monkeypatch.setattr(bucket_listing, "ENOUGH", 1)
    assert asked_for("b*/**/*.mp4") == ["/bucket", "/bucket/b"]


def test_two_stars_inside_of_a_name_are_refused() -> None:
    with pytest.raises(CorpusError, match="can only be an entire path component"):
        find(CorpusConfig(videos=("memory://bucket/a**b.mp4",)))


def test_a_pattern_that_names_folders_says_how_files_are_named(store: MemoryFileSystem) -> None:
    with pytest.raises(
        CorpusError, match=r"a pattern names files, not folders: for all below folders write memory://bucket/b\*/\*\*$"
    ):
        find(CorpusConfig(videos=("memory://bucket/b*",)))
    assert len(find(CorpusConfig(videos=("memory://bucket/b*/**",)))) == 3
