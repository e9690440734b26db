"""The stage that a checkpoint was trained in, whatever its configuration plans after that."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cluster.config import load
from pretrain.checkpoint.trained_stage import TrainedStage
from pretrain.data.config import CurriculumConfig
from pretrain.data.curriculum import Curriculum

CONFIG = """
objective: {window: 5, condition_drop: 0.2}
sample: {guidance: [5, 3], guidance_end: 3}
train: {dtype: bfloat16}
curriculum:
  stages:
    - {name: images, steps: 4, mix: [{bucket: f009x32x32, frames: 1, batch: 2}]}
    - name: both
      steps: 6
      window: 1
      mix: [{bucket: f009x32x32, batch: 2, weight: 5}, {bucket: f005x64x64, batch: 1, weight: 1}]
    - {name: long, steps: 4, window: 0, mix: [{bucket: f017x64x64, batch: 1}]}
"""


@pytest.mark.parametrize(
    ("step", "name", "window", "shapes"),
    [
        (4, "images", 5, ("f001x32x32",)),
        (5, "both", 1, ("f009x32x32",)),
        (10, "both", 1, ("f009x32x32", "f005x64x64")),
        (11, "long", 0, ("f017x64x64",)),
    ],
)
def test_it_is_that_of_the_last_step_with_the_shapes_seen_by_then(
    tmp_path: Path, step: int, name: str, window: int, shapes: tuple[str, ...]
) -> None:
    (tmp_path / "c.yaml").write_text(CONFIG)
    config = load(tmp_path / "c.yaml")
    found = TrainedStage.of(config, Curriculum(config.get(CurriculumConfig)), step, fps=12.0)
    assert found == TrainedStage(name, window, shapes, 12.0, "bfloat16", 0.2, (5.0, 3.0, 3.0))
    assert TrainedStage.parse(json.loads(json.dumps(found.plain()))) == found
