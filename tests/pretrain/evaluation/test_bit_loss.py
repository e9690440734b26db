"""The bit loss of held-out clips is the objective's, one clip at a time and nothing corrupted."""

from __future__ import annotations

import math

import pytest
import torch

from cluster.config import Config
from pretrain.evaluation.bit_loss import bit_loss
from pretrain.objective.config import ObjectiveConfig
from pretrain.sampling.generate import VideoGenerator
from tests.pretrain.evaluation.test_held_out import held


def test_figures_agree_with_each_other(job: Config, generator: VideoGenerator) -> None:
    real = held(job, generator, 6)
    found = bit_loss(generator, real, ObjectiveConfig())
    assert found["clips"] == 6 and len(found["by_frame"]) == 3
    assert list(found["by_scale"]) == [f"{rows}x{columns}" for rows, columns in generator.codec.spec.scales(4, 5)]
    assert sum(found["by_frame"]) / 3 == pytest.approx(found["loss"], rel=1e-5)
    low, high = found["loss_interval"]
    assert low <= found["loss"] <= high
    assert all(0 <= value <= 1 for value in found["accuracy_by_scale"].values())
    assert bit_loss(generator, real, ObjectiveConfig(flip_max=0.9)) == found  # the corruption of training has no part in it


def test_a_model_that_says_nothing_loses_ln_2(job: Config, generator: VideoGenerator) -> None:
    head = generator.sampler.model.head
    before = {name: value.clone() for name, value in head.state_dict().items()}
    for value in head.parameters():
        torch.nn.init.zeros_(value)
    try:
        found = bit_loss(generator, held(job, generator, 2), ObjectiveConfig(scale_weights="uniform"))
    finally:
        head.load_state_dict(before)
    assert found["loss"] == pytest.approx(math.log(2), rel=1e-6)
    assert all(value == pytest.approx(math.log(2), rel=1e-6) for value in found["by_scale"].values())
