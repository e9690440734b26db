"""Shards of an object store through a bounded local folder: the same samples, each tar fetched once, bad stores named."""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest

from cluster.runtime import remote_files
from pipeline.records import Bucket
from pipeline.shards.dataset import ShardDataset
from pipeline.shards.layout import DatasetError
from pipeline.shards.reader import CorruptSample
from pipeline.shards.remote_cache import ShardCache
from pretrain.data.config import CurriculumConfig, Mix, Stage
from pretrain.data.curriculum import Curriculum
from pretrain.data.sample_order import Order
from pretrain.data.token_datasets import TokenDatasets
from tests.helpers import made_shards

NAME = "f009x32x32"
BUCKET = Bucket.parse(NAME)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight tars of three samples."""
    return made_shards.make(tmp_path_factory.mktemp("data") / "shards", {NAME: 24}, shard_rows=3)


@pytest.fixture
def url(shards: Path) -> Iterator[str]:
    """The same folder in fsspec's memory file system."""
    files, root = fsspec.filesystem("memory"), f"/{uuid.uuid4().hex}"
    files.put(str(shards), root, recursive=True)
    yield f"memory:/{root}"
    files.rm(root, recursive=True)


def size(shards: Path) -> int:
    return max(path.stat().st_size for path in shards.rglob("*.tar"))


def held(cache: Path) -> int:
    return sum(path.stat().st_size for path in cache.rglob("*.tar"))


def test_a_store_gives_the_samples_of_the_local_folder_in_bounded_space(shards: Path, url: str, tmp_path: Path) -> None:
    local, limit = ShardDataset.open(shards), 3 * size(shards)
    remote = ShardDataset.open(url, tmp_path / "cache", limit)
    assert remote.digest == local.digest and remote.spec == local.spec
    for number in [*range(24), 0, 23, 5]:
        assert remote.read(BUCKET, number) == local.read(BUCKET, number)
        assert 0 < held(tmp_path / "cache") <= limit
        # What made room is closed too, so that its bytes are free.
        assert len(remote._tars) <= 3
    assert not list((tmp_path / "cache").rglob("*.partial"))


def test_training_order_fetches_each_tar_once_an_epoch(
    shards: Path, url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    window, fetched = 2, Counter[str]()
    fetch = ShardCache._fetch
    monkeypatch.setattr(ShardCache, "_fetch", lambda self, name: (fetched.update([name]), fetch(self, name))[1])
    stage = Stage(name="s", steps=12, mix=(Mix(bucket=NAME, batch=4),))
    curriculum = Curriculum(CurriculumConfig(stages=(stage,)))
    # Two ranks of one host: two caches over one folder.
    corpora = [
        TokenDatasets.open([url], curriculum, cache=tmp_path / "cache", cache_gb=(window + 1) * size(shards) / 1e9)
        for _ in range(2)
    ]
    order = Order(1, curriculum, {name: corpora[0].sources(name) for name in curriculum.streams()}, window)
    for epoch in range(2):
        fetched.clear()
        for step in range(6 * epoch + 1, 6 * epoch + 7):
            for number, slot in enumerate(order.slots(step)):
                corpora[number % 2].read((NAME, 0), slot)
        # Where two epochs meet, a window's tars may still be there.
        assert set(fetched.values()) == {1} and 8 - window <= len(fetched) <= 8


def test_damage_in_the_store_and_missing_tars_are_named(url: str, tmp_path: Path) -> None:
    files = fsspec.filesystem("memory")
    inner = url.removeprefix("memory:/")
    tar = f"{inner}/{NAME}/shard-000000.tar"
    bytes_ = bytearray(files.cat_file(tar))
    row = ShardDataset.open(url, tmp_path / "a", 10**9).rows(BUCKET).slice(0, 1).to_pylist()[0]
    bytes_[row["bits_offset"] + 2] ^= 1
    files.pipe_file(tar, bytes(bytes_))
    files.rm(f"{inner}/{NAME}/shard-000001.tar")
    dataset = ShardDataset.open(url, tmp_path / "b", 10**9)
    with pytest.raises(CorruptSample, match=f"shard-000000: sample {row['key']}"):
        dataset.read(BUCKET, 0)
    with pytest.raises(DatasetError, match=r"shard-000001\.tar: .*`videoar shards verify` lists"):
        dataset.read(BUCKET, 3)


def test_a_broken_connection_is_tried_again_and_then_named(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote_files, "_PAUSE", 0.0)
    dataset = ShardDataset.open(url, tmp_path / "cache", 10**9)
    files = fsspec.filesystem("memory")
    whole, calls = type(files).get_file, []

    def torn(self: Any, rpath: str, lpath: str, *rest: Any, **more: Any) -> None:
        whole(self, rpath, lpath, *rest, **more)
        calls.append(rpath)
        if len(calls) < 3:
            path = Path(lpath)
            path.write_bytes(path.read_bytes()[:100])

    monkeypatch.setattr(type(files), "get_file", torn)
    assert dataset.read(BUCKET, 0).key and len(calls) == 3

    def dead(self: Any, *rest: Any, **more: Any) -> None:
        raise ConnectionResetError("the store hung up")

    monkeypatch.setattr(type(files), "get_file", dead)
    with pytest.raises(DatasetError, match=r"shard-000001\.tar: .*the store hung up"):
        dataset.read(BUCKET, 3)


def test_excluded_sources_of_a_store_are_read_anew_at_each_start(url: str, tmp_path: Path) -> None:
    files, inner = fsspec.filesystem("memory"), url.removeprefix("memory:/")
    before = ShardDataset.open(url, tmp_path / "cache", 10**9)
    files.pipe_file(f"{inner}/excluded.json", f'["{NAME}-2.mp4"]'.encode())
    after = ShardDataset.open(url, tmp_path / "cache", 10**9)
    assert (len(before), len(after)) == (24, 23) and before.digest != after.digest
    files.rm(f"{inner}/excluded.json")
    assert ShardDataset.open(url, tmp_path / "cache", 10**9).digest == before.digest


def test_urls_need_a_cache_and_must_exist(url: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"set curriculum\.cache"):
        ShardDataset.open(url)
    with pytest.raises(DatasetError, match="so it holds no shards"):
        ShardDataset.open(f"{url}-not-there", tmp_path, 10**9)
    with pytest.raises(DatasetError, match="nosuch://bucket/x: cannot be opened"):
        ShardDataset.open("nosuch://bucket/x", tmp_path, 10**9)
    config = CurriculumConfig.model_validate({"shards": [url, "some/folder"]})
    assert config.shards == (url, Path("some/folder"))
