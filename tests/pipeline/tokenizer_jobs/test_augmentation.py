"""Augmentation: a part of the frame in other light, the same for every frame of a clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.tokenizer_jobs.augmentation import augment
from pipeline.tokenizer_jobs.clip_sampler import VideoClips
from tokenizer.config import AugmentConfig, TrainingBucket


def generator(seed: int) -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=seed))


def ramp(frames: int, height: int, width: int) -> torch.Tensor:
    """Red grows with the column, green with the row, blue with time."""
    clip = torch.zeros(frames, height, width, 3)
    clip[..., 0] = torch.arange(width) * 2.0
    clip[..., 1] = torch.arange(height).unsqueeze(1) * 2.0
    clip[..., 2] = torch.arange(frames).view(-1, 1, 1) * 10.0
    return clip.byte()


def test_zoom_takes_a_part_of_the_frame_with_its_aspect() -> None:
    clip = ramp(3, 64, 96)
    spans = []
    for seed in range(40):
        made = augment(clip, 32, 48, AugmentConfig(zoom=2.0), False, generator(seed))
        assert made.shape == (3, 32, 48, 3) and made.dtype == torch.uint8
        across = (made[0, 0, -1, 0].int() - made[0, 0, 0, 0].int()).item() / 2 / 47 * 48
        down = (made[0, -1, 0, 1].int() - made[0, 0, 0, 1].int()).item() / 2 / 31 * 32
        assert across / down == pytest.approx(1.5, abs=0.12)
        assert made[..., 2].unique().tolist() == [0, 10, 20]  # time is left alone
        spans.append(across)
    assert 46 <= min(spans) < 60 and 84 < max(spans) <= 98


def test_light_moves_every_frame_alike() -> None:
    clip = torch.full((4, 16, 16, 3), 100, dtype=torch.uint8)
    seen = set()
    for seed in range(20):
        made = augment(clip, 16, 16, AugmentConfig(contrast=0.3, colour=0.1, brightness=25), True, generator(seed))
        assert (made == made[:1, :1, :1]).all()
        seen.add(tuple(made[0, 0, 0].tolist()))
        assert all(50 <= value <= 140 for value in made[0, 0, 0].tolist())
    assert len(seen) > 15


def test_clips_run_backwards_and_mirrored_only_where_allowed() -> None:
    clip = ramp(3, 16, 16)
    plain = {augment(clip, 16, 16, AugmentConfig(), False, generator(seed)).numpy().tobytes() for seed in range(10)}
    assert plain == {clip.numpy().tobytes()}
    turned = [augment(clip, 16, 16, AugmentConfig(backwards=True), True, generator(seed)) for seed in range(60)]
    kinds = [(bool(x[0, 0, 0, 2] > x[-1, 0, 0, 2]), bool(x[0, 0, 0, 0] > x[0, 0, -1, 0])) for x in turned]
    assert all(5 < kinds.count(kind) < 28 for kind in ((False, False), (False, True), (True, False), (True, True)))


def test_the_loader_varies_its_clips_as_a_function_of_the_step(clips: Path) -> None:
    videos = [str(clips / "carphone_pristine.mp4")]
    bucket = TrainingBucket(frames=5, height=32, width=48, batch=4)
    config = AugmentConfig(zoom=2.0, contrast=0.3, brightness=25)
    one, two = (VideoClips(videos, 8.0, seed=1, augment=config) for _ in range(2))
    batch = one.batch(3, bucket, 0, 1)
    assert batch.shape == (4, 5, 32, 48, 3)
    assert torch.equal(torch.cat([two.batch(3, bucket, rank, 2) for rank in range(2)]), batch)
    plain = VideoClips(videos, 8.0, seed=1)
    assert not torch.equal(plain.batch(3, bucket, 0, 1), batch)
    assert torch.equal(
        VideoClips(videos, 8.0, seed=1, augment=AugmentConfig()).batch(3, bucket, 0, 1), plain.batch(3, bucket, 0, 1)
    )
