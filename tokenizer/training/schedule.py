"""What a training step uses, as pure functions of its number: clip shape, learning rate, kept scales, where quantizers stop, averaging decay.

In:  a step (counted from 0), the training section, a seed.
Out: plain values, equal on every rank and after every restart.
"""

from __future__ import annotations

import math

import numpy as np

from tokenizer.config import TokenizerTraining, TrainingBucket


def bucket_at(step: int, training: TokenizerTraining, seed: int) -> TrainingBucket:
    """Return the clip shape of a step, drawn by weight among the buckets that are open then."""
    open_now = [b for b in training.buckets if b.begin <= step and (b.end is None or step < b.end)]
    weights = np.array([bucket.weight for bucket in open_now])
    draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, 0, step]))
    return open_now[int(draw.choice(len(open_now), p=weights / weights.sum()))]


def learning_rate_at(step: int, training: TokenizerTraining) -> float:
    """Return the learning rate of a step: linear warm-up, then cosine to 0."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    progress = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def kept_scales_at(step: int, count: int, training: TokenizerTraining, seed: int) -> list[bool]:
    """Return which of `count` scales a step uses: always the last, the others by `scale_dropout`, or only the last one."""
    if not training.multi_scale or step < training.single_scale_steps:
        return [False] * (count - 1) + [True]
    draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 2, 0, step]))
    return [bool(value >= training.scale_dropout) for value in draw.random(count - 1)] + [True]


def depths_at(step: int, batch: int, kept: list[bool], training: TokenizerTraining, seed: int) -> list[int] | None:
    """Return after how many scales the quantizer of each clip of a step's whole batch stops; None when it stops for none.

    By `quantizer_dropout` it stops at one of the step's kept scales but the last, so that something is left of every clip.
    """
    used = [scale for scale, keeps in enumerate(kept) if keeps]
    if not training.quantizer_dropout or len(used) == 1:
        return None
    draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 4, 0, step]))
    shallow = draw.random(batch) < training.quantizer_dropout
    last = draw.integers(1, len(used), batch)
    return [used[int(number) - 1] + 1 if drop else len(kept) for drop, number in zip(shallow, last)]


def quantized_share_at(step: int, training: TokenizerTraining) -> float:
    """Return the share of the quantizer's error that a step's decoder sees: 0 in the unquantized steps, then growing to 1."""
    done = step - training.unquantized_steps
    if done < 0:
        return 0.0
    return min(1.0, (done + 1) / (training.quantization_ramp + 1))


def perceptual_frames_at(step: int, frames: int, most: int, seed: int) -> list[int]:
    """Return the frames that a step's perceptual loss compares, ascending: `most` of them, or all when `most` is 0 or too large."""
    if most == 0 or most >= frames:
        return list(range(frames))
    draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 3, 0, step]))
    return sorted(int(frame) for frame in draw.choice(frames, size=most, replace=False))


def ema_decay_at(step: int, training: TokenizerTraining) -> float:
    """Return the decay of the moving average after `step` finished steps: small at first, so that early weights fade."""
    return min(training.ema, (1 + step) / (10 + step))
