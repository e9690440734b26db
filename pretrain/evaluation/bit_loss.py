"""Bit loss of a model on held-out tokens, by scale and by latent frame, with the true history as input.

In:  a `VideoGenerator` and held-out bits with their captions.
Out: per clip: loss, loss and accuracy by scale, loss by frame, all in nats per bit (accuracy: share of bits).

It is the loss of training (`pretrain/objective`) with nothing corrupted and no caption dropped: one clip at a time, so that clips can be
resampled.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from cluster.runtime.progress import ProgressBar
from pretrain.data.batch import Batch
from pretrain.evaluation import intervals
from pretrain.evaluation.held_out import HeldOut
from pretrain.objective.config import ObjectiveConfig
from pretrain.objective.objective import Objective
from pretrain.sampling.generate import VideoGenerator

CLEAN = {"flip_min": 0.0, "flip_max": 0.0, "flip_delta": 0.0, "condition_drop": 0.0}
"""The corruption of training, off."""


@torch.no_grad()
def bit_loss(generator: VideoGenerator, held_out: HeldOut, config: ObjectiveConfig) -> dict[str, Any]:
    """Return the mean over clips of each figure, with 95 % intervals over clips of the loss. config: gives the weights of the scales."""
    sampler = generator.sampler
    objective = Objective(sampler.model, config.model_copy(update=CLEAN), generator.codec.spec).eval()
    device = sampler.model.start.weight.device
    found: dict[str, list[list[float]]] = {"loss": [], "scale_loss": [], "scale_accuracy": [], "frame_loss": []}
    with ProgressBar("bit loss", len(held_out), stderr=True) as progress:
        for number in range(len(held_out)):
            text, length = sampler.text.batch([held_out.captions[number]])
            batch = Batch(
                bits=held_out.bits[number : number + 1],
                text=text,
                text_length=length,
                weight=torch.ones(1),
                seeds=torch.zeros(1, dtype=torch.int64),
                grid=generator.grid,
                ids=(held_out.keys[number],),
            )
            parts = objective(batch.to(device), generator.window, 0.0)
            for name, rows in found.items():
                rows.append(parts[name].double().flatten().tolist())
            progress.update()
    means = {name: np.array(rows).mean(0).tolist() for name, rows in found.items()}
    scales = [f"{rows}x{columns}" for rows, columns in generator.codec.spec.scales(*generator.grid[1:])]
    return {
        "clips": len(held_out),
        "unit": "nats per bit",
        "loss": means["loss"][0],
        "loss_interval": intervals.of_mean([row[0] for row in found["loss"]]),
        "by_scale": dict(zip(scales, means["scale_loss"], strict=True)),
        "accuracy_by_scale": dict(zip(scales, means["scale_accuracy"], strict=True)),
        "by_frame": means["frame_loss"],
    }
