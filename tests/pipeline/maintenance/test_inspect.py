from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from cluster.runtime.atomic_files import write_json
from pipeline import video
from pipeline.books.index import finish
from pipeline.books.tasks import serially
from pipeline.maintenance import inspect
from pipeline.records import Bucket
from pipeline.shards.layout import DatasetError
from pipeline.shards.manifest import Manifest
from pipeline.shards.writer import EncodedClip, write_shard
from tests.helpers.fakes import tiny_tokenizer
from tests.helpers.plans import BUCKET, merged, plan
from tokenizer.codec import VideoCodec


def test_stat_counts(folder: Path) -> None:
    found = inspect.stat(folder)
    assert found["buckets"] == {BUCKET.name: {"shards": 3, "samples": 6, "frames": 30, "tokens": 6 * 2 * 5, "bytes": 3 * 10240}}
    assert found["refused"] == {"encode/damaged": 1, "probe/unreadable": 1} and found["videos"] == 3
    json.dumps(found)


def test_tasks_of_any_size_count_the_same(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = inspect.stat(folder)
    assert whole["videos_used"] == len(Manifest(folder).used()) and whole["videos"] == len(Manifest(folder).known())
    steps: list[str] = []

    def run(step: str, function: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> Iterator[Any]:
        steps.append(f"{step} {len(calls)}")
        return serially(step, function, calls)

    monkeypatch.setattr(inspect, "TASK_SHARDS", 1)
    monkeypatch.setattr("pipeline.maintenance.tally.portions", lambda spills: 5)
    assert inspect.stat(folder, run) == whole and steps == ["shards 3", "rejects 2", "sources 4", "counts 5"]
    assert not list(folder.glob(".stat*"))


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, Path]:
    """A tokenizer, and a folder of three clips of noise that it can decode."""
    weights = tiny_tokenizer(tmp_path / "tokenizer")
    codec, folder = VideoCodec.load(weights), tmp_path / "shards"
    manifest = merged(folder, [plan("a", [0, 1, 2])])
    plain = {"format": 1, "spec": codec.spec.plain(), "fps": 8.0, "buckets": [BUCKET.name], "features": False}
    write_json(folder / "dataset.json", plain)
    frames = torch.randint(0, 256, (1, BUCKET.frames, BUCKET.height, BUCKET.width, 3), dtype=torch.uint8)
    bits = codec.encode(frames).bits.numpy().tobytes()
    for group, (name,), _ in manifest.shards():
        write_shard(folder, name, [EncodedClip(clip, bits) for clip in manifest.clips(group)], [], codec.spec)
    finish(manifest)
    return folder, weights


def test_show_writes_a_grid_of_samples(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder, weights = made
    info = video.probe(inspect.show(folder, weights, tmp_path / "new" / "grid.mp4", count=3))
    assert (info.frames, info.height, info.width) == (BUCKET.frames, 2 * BUCKET.height, 2 * BUCKET.width)
    with pytest.raises(DatasetError, match=rf"no samples in f009x16x16; it has {BUCKET.name}"):
        inspect.show(folder, weights, tmp_path / "x.mp4", bucket=Bucket(frames=9, height=16, width=16).name)


def test_show_refuses_another_tokenizer(folder: Path, made: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="was made with tokenizer fakefakefake"):
        inspect.show(folder, made[1], tmp_path / "x.mp4")
