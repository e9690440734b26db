"""What a training step does, as pure functions of its number: clip shape, learning rate, scales kept, averaging decay.

In:  a step (from 0), the training section, a seed.
Out: plain values, equal on every rank and after any restart.
Called by: tokenizer/training/train.py.
"""

from __future__ import annotations

import math

import numpy as np

from tokenizer.config import TokenizerTraining, TrainingBucket


def bucket_at(step: int, training: TokenizerTraining, seed: int) -> TrainingBucket:
    """Shape of the step, drawn by weight among the buckets that are open at the step."""
    fitting = [b for b in training.buckets if b.begin <= step and (b.end is None or step < b.end)]
    weights = np.array([bucket.weight for bucket in fitting])
    draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 1, 0, step]))
    return fitting[int(draw.choice(len(fitting), p=weights / weights.sum()))]


def rate_at(step: int, training: TokenizerTraining) -> float:
    """Learning rate of the step (from 0): linear warm-up, then cosine to 0."""
    if step < training.warmup:
        return training.learning_rate * (step + 1) / training.warmup
    progress = (step - training.warmup) / max(1, training.steps - training.warmup)
    return training.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def keep_at(step: int, count: int, training: TokenizerTraining, seed: int) -> list[bool]:
    """Scales that the step uses: the last one always, the others by `scale_dropout`, none of them in the single-scale stage."""
    if not training.multi_scale or step < training.single_scale_steps:
        return [False] * (count - 1) + [True]
    draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 2, 0, step]))
    return [bool(value >= training.scale_dropout) for value in draw.random(count - 1)] + [True]


def looked_at(step: int, frames: int, most: int, seed: int) -> list[int]:
    """Frames of the step's clips that the perceptual loss looks at, ascending: `most` of them, all when that is 0 or more than all."""
    if most == 0 or most >= frames:
        return list(range(frames))
    draw = np.random.Generator(np.random.Philox(key=seed, counter=[0, 3, 0, step]))
    return sorted(int(frame) for frame in draw.choice(frames, size=most, replace=False))


def ema_at(step: int, training: TokenizerTraining) -> float:
    """Decay of the moving average after `step` finished steps: short at first, so that early weights fade."""
    return min(training.ema, (1 + step) / (10 + step))
