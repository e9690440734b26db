"""The learning rate as a pure function of the step: warm-up, then cosine, constant or WSD over the whole curriculum.

In:  the `train` section and the curriculum.
Out: `learning_rate(step, ...)`; the engine sets it before each optimizer step, so nothing of it is saved.
Called by: train.py, plan.py.
"""

from __future__ import annotations

import math

from pretrain.data.curriculum import Curriculum
from pretrain.engine.config import TrainConfig

DECAY_SHARE = 0.2
"""Last share of the steps over which `wsd` falls."""


def learning_rate(step: int, config: TrainConfig, curriculum: Curriculum) -> float:
    """Return the learning rate of `step` (1..steps); a stage's own peak replaces train.learning_rate.

    Warm-up: linear, reaching the peak at step `warmup`. Cosine as the paper uses (A4); `final_ratio` is the floor.
    """
    peak = curriculum.at(step).stage.learning_rate or config.learning_rate
    return peak * _factor(step, config, curriculum.steps)


def _factor(step: int, config: TrainConfig, steps: int) -> float:
    if step <= config.warmup:
        return step / config.warmup
    if config.schedule == "constant":
        return 1.0
    if config.schedule == "wsd":
        decay = max(1, round(DECAY_SHARE * steps))
        progress = max(0.0, (step - (steps - decay)) / decay)
        return 1.0 - (1.0 - config.final_ratio) * progress
    progress = (step - config.warmup) / max(1, steps - config.warmup)
    return config.final_ratio + (1.0 - config.final_ratio) * 0.5 * (1.0 + math.cos(math.pi * progress))
