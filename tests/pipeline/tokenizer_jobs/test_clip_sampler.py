"""Random training clips: pure in the step, equal on any number of ranks, honest about what cannot be used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pipeline.tokenizer_jobs.clip_sampler import ClipError, VideoClips
from tokenizer.config import TrainingBucket

BUCKET = TrainingBucket(frames=5, height=32, width=48, batch=4)


def test_a_batch_is_a_function_of_its_step(clips: Path) -> None:
    videos = sorted(str(path) for path in clips.glob("carphone*.mp4"))
    one, two = VideoClips(videos, 8.0, seed=1), VideoClips(videos, 8.0, seed=1)
    late = one.batch(7, BUCKET, 0, 1)
    one.batch(0, BUCKET, 0, 1)
    assert late.shape == (4, 5, 32, 48, 3)
    assert late.dtype == torch.uint8
    assert torch.equal(two.batch(7, BUCKET, 0, 1), late)
    assert not torch.equal(two.batch(8, BUCKET, 0, 1), late)
    assert not torch.equal(VideoClips(videos, 8.0, seed=2).batch(7, BUCKET, 0, 1), late)


def test_ranks_share_one_global_batch(clips: Path) -> None:
    source = VideoClips([str(clips / "carphone_pristine.mp4")], 8.0, seed=1)
    whole = source.batch(3, BUCKET, 0, 1)
    shared = torch.cat([source.batch(3, BUCKET, rank, 2) for rank in range(2)])
    assert torch.equal(whole, shared)
    with pytest.raises(ClipError, match="does not divide among 3 ranks"):
        source.batch(3, BUCKET, 0, 3)


def test_the_cache_changes_no_pixel(clips: Path) -> None:
    videos = [str(clips / "carphone_pristine.mp4")]
    cached, direct = VideoClips(videos, 10.0, seed=3), VideoClips(videos, 10.0, seed=3, cache_mb=0.0)
    assert torch.equal(cached.batch(0, BUCKET, 0, 1), direct.batch(0, BUCKET, 0, 1))


def test_images_come_from_videos_too(clips: Path) -> None:
    image = TrainingBucket(frames=1, height=32, width=32, batch=2)
    assert VideoClips([str(clips / "carphone_pristine.mp4")], 8.0, seed=0).batch(0, image, 0, 1).shape == (2, 1, 32, 32, 3)


def test_broken_and_short_videos_are_left_out(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    source = VideoClips([str(broken), str(clips / "carphone_pristine.mp4")], 8.0, seed=0)
    source.batch(0, BUCKET, 0, 1)
    source.batch(1, BUCKET, 0, 1)
    assert capsys.readouterr().out.count(str(broken)) == 1, "named once"
    with pytest.raises(ClipError, match="name longer videos"):
        source.batch(0, TrainingBucket(frames=401, height=32, width=32, batch=1), 0, 1)
