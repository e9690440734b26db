"""Random training clips: pure in the step, equal on any number of ranks, clear about what cannot be used; augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.tokenizer_jobs import clip_sampler
from pipeline.tokenizer_jobs.clip_sampler import CACHE_BYTES, ClipError, ClipSampler, augment, cache_room
from tokenizer.config import AugmentConfig, TrainingBucket

BUCKET = TrainingBucket(frames=5, height=32, width=48, batch=4)


def test_a_batch_is_a_function_of_its_step(clips: Path) -> None:
    videos = sorted(str(path) for path in clips.glob("carphone*.mp4"))
    one, two = ClipSampler(videos, 8.0, seed=1), ClipSampler(videos, 8.0, seed=1)
    late = one.batch(7, BUCKET, 0, 1)
    one.batch(0, BUCKET, 0, 1)
    assert late.shape == (4, 5, 32, 48, 3)
    assert late.dtype == torch.uint8
    assert torch.equal(two.batch(7, BUCKET, 0, 1), late)
    assert not torch.equal(two.batch(8, BUCKET, 0, 1), late)
    assert not torch.equal(ClipSampler(videos, 8.0, seed=2).batch(7, BUCKET, 0, 1), late)


def test_ranks_share_one_global_batch(clips: Path) -> None:
    source = ClipSampler([str(clips / "carphone_pristine.mp4")], 8.0, seed=1)
    whole = source.batch(3, BUCKET, 0, 1)
    shared = torch.cat([source.batch(3, BUCKET, rank, 2) for rank in range(2)])
    assert torch.equal(whole, shared)
    with pytest.raises(ClipError, match="does not divide among 3 ranks"):
        source.batch(3, BUCKET, 0, 3)


def test_the_cache_changes_no_pixel(clips: Path) -> None:
    videos = [str(clips / "carphone_pristine.mp4")]
    cached, direct = ClipSampler(videos, 10.0, seed=3), ClipSampler(videos, 10.0, seed=3, cache_bytes=0)
    assert torch.equal(cached.batch(0, BUCKET, 0, 1), direct.batch(0, BUCKET, 0, 1))


def test_images_come_from_videos_too(clips: Path) -> None:
    image = TrainingBucket(frames=1, height=32, width=32, batch=2)
    assert ClipSampler([str(clips / "carphone_pristine.mp4")], 8.0, seed=0).batch(0, image, 0, 1).shape == (2, 1, 32, 32, 3)


def test_broken_and_short_videos_are_left_out(clips: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"no video")
    source = ClipSampler([str(broken), str(clips / "carphone_pristine.mp4")], 8.0, seed=0)
    source.batch(0, BUCKET, 0, 1)
    source.batch(1, BUCKET, 0, 1)
    assert capsys.readouterr().out.count(str(broken)) == 1, "named once"
    with pytest.raises(ClipError, match="name longer videos"):
        source.batch(0, TrainingBucket(frames=401, height=32, width=32, batch=1), 0, 1)


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


def test_the_sampler_varies_its_clips_as_a_function_of_the_step(clips: Path) -> None:
    videos = [str(clips / "carphone_pristine.mp4")]
    bucket = TrainingBucket(frames=5, height=32, width=48, batch=4)
    config = AugmentConfig(zoom=2.0, contrast=0.3, brightness=25)
    one, two = (ClipSampler(videos, 8.0, seed=1, augment=config) for _ in range(2))
    batch = one.batch(3, bucket, 0, 1)
    assert batch.shape == (4, 5, 32, 48, 3)
    assert torch.equal(torch.cat([two.batch(3, bucket, rank, 2) for rank in range(2)]), batch)
    plain = ClipSampler(videos, 8.0, seed=1)
    assert not torch.equal(plain.batch(3, bucket, 0, 1), batch)
    assert torch.equal(
        ClipSampler(videos, 8.0, seed=1, augment=AugmentConfig()).batch(3, bucket, 0, 1), plain.batch(3, bucket, 0, 1)
    )


def test_memory_for_decoded_videos_follows_what_the_host_has_free(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 MB a rank, whatever the host: 6,000 short clips were decoded anew at every step."""
    monkeypatch.setattr(clip_sampler, "free_memory", lambda: 64_000_000_000)
    assert cache_room(2) == 4_000_000_000
    monkeypatch.setattr(clip_sampler, "free_memory", lambda: 1_000_000_000)
    assert cache_room(1) == CACHE_BYTES
