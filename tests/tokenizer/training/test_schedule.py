"""Schedules of tokenizer training: pure functions of the step."""

from __future__ import annotations

from itertools import pairwise

import pytest

from tokenizer.config import TokenizerTraining, TrainingBucket
from tokenizer.training.schedule import (
    bucket_at,
    depths_at,
    ema_decay_at,
    kept_scales_at,
    learning_rate_at,
    perceptual_frames_at,
    quantized_share_at,
)


def test_learning_rate_warms_up_and_falls_to_zero() -> None:
    training = TokenizerTraining(steps=100, warmup=10, learning_rate=1.0)
    rates = [learning_rate_at(step, training) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[-1] < 1e-3
    assert all(a >= b for a, b in pairwise(rates[10:]))


def test_scale_dropout_keeps_the_last_and_about_half_of_the_rest() -> None:
    training = TokenizerTraining(scale_dropout=0.5, single_scale_steps=10)
    assert kept_scales_at(9, 6, training, 0) == [False] * 5 + [True]
    drawn = [kept_scales_at(step, 6, training, 0) for step in range(10, 410)]
    assert all(keep[-1] for keep in drawn)
    share = sum(sum(keep[:-1]) for keep in drawn) / (5 * len(drawn))
    assert 0.45 < share < 0.55
    assert kept_scales_at(50, 6, training, 0) == kept_scales_at(50, 6, training, 0)
    assert kept_scales_at(50, 6, TokenizerTraining(multi_scale=False), 0) == [False] * 5 + [True]


def test_the_quantizers_error_begins_at_once_or_grows() -> None:
    assert quantized_share_at(0, TokenizerTraining()) == 1.0
    late = TokenizerTraining(unquantized_steps=5)
    assert [quantized_share_at(step, late) for step in (0, 4, 5, 6)] == [0.0, 0.0, 1.0, 1.0]
    grown = TokenizerTraining(unquantized_steps=2, quantization_ramp=3)
    assert [quantized_share_at(step, grown) for step in range(7)] == [0.0, 0.0, 0.25, 0.5, 0.75, 1.0, 1.0]


def test_quantizer_dropout_stops_at_any_kept_scale_but_the_last() -> None:
    training = TokenizerTraining(quantizer_dropout=0.5)
    drawn = [depth for step in range(200) for depth in depths_at(step, 8, [True] * 6, training, 0) or []]
    counts = [drawn.count(depth) for depth in range(1, 7)]
    assert sum(counts) == 1600 and 720 < counts[5] < 880 and min(counts[:5]) > 110 and max(counts[:5]) < 210
    thinned = {depth for step in range(50) for depth in depths_at(step, 8, [False, True, False, True, True], training, 0) or []}
    assert thinned == {2, 4, 5}, "every clip has at least the first kept scale"
    assert (
        depths_at(3, 8, [True] * 6, training, 0)
        == depths_at(3, 8, [True] * 6, training, 0)
        != depths_at(4, 8, [True] * 6, training, 0)
    )
    assert depths_at(3, 8, [False, False, True], training, 0) is None, "the single-scale stage has nothing to leave out"
    assert depths_at(3, 8, [True] * 6, TokenizerTraining(), 0) is None


def test_buckets_open_and_close_by_step() -> None:
    image = TrainingBucket(frames=1, height=128, width=128, batch=8, end=100)
    video = TrainingBucket(frames=17, height=128, width=128, batch=8, begin=50, weight=3)
    training = TokenizerTraining(buckets=(image, video))
    assert {bucket_at(step, training, 0) for step in range(50)} == {image}
    assert {bucket_at(step, training, 0) for step in range(100, 150)} == {video}
    joint = [bucket_at(step, training, 0) for step in range(50, 100)]
    assert 25 < sum(bucket is video for bucket in joint) < 50


def test_the_moving_average_is_short_at_first() -> None:
    training = TokenizerTraining(ema=0.999)
    assert ema_decay_at(0, training) == pytest.approx(0.1)
    assert ema_decay_at(10**6, training) == 0.999


def test_perceptual_frames_are_drawn_evenly() -> None:
    assert perceptual_frames_at(3, 9, 0, 0) == perceptual_frames_at(3, 9, 12, 0) == list(range(9))
    drawn = [perceptual_frames_at(step, 9, 3, 0) for step in range(600)]
    assert all(len(set(frames)) == 3 and frames == sorted(frames) for frames in drawn)
    counts = [sum(frame in frames for frames in drawn) for frame in range(9)]
    assert min(counts) > 150 and max(counts) < 250
    assert perceptual_frames_at(7, 9, 3, 0) == perceptual_frames_at(7, 9, 3, 0) != perceptual_frames_at(8, 9, 3, 0)
