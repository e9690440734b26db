"""Training states: written and read."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from cluster.config import ConfigError, load
from pretrain.checkpoint.train_state import ResumeError, TrainedStage, TrainState
from pretrain.data.config import CurriculumConfig
from pretrain.data.curriculum import Curriculum
from tests.helpers.made_state import STATE


def test_state_round_trips_and_refuses_another_format(tmp_path: Path) -> None:
    state = replace(STATE, guard={"losses": [0.1, 1 / 3]})
    state.write(tmp_path / "state.json")
    assert TrainState.read(tmp_path / "state.json") == state
    (tmp_path / "state.json").write_text('{"step": 1}')
    with pytest.raises(ResumeError, match=r"state\.json: no readable training state"):
        TrainState.read(tmp_path / "state.json")


def test_a_state_of_an_older_version_is_read(tmp_path: Path) -> None:
    """It has a digest that is no longer used, and lacks what came later."""
    plain = {name: value for name, value in asdict(STATE).items() if name != "contents"} | {"past": "p"}
    (tmp_path / "state.json").write_text(json.dumps(plain))
    assert TrainState.read(tmp_path / "state.json") == STATE


def test_a_refusal_is_an_error_of_the_configuration() -> None:
    assert issubclass(ResumeError, ConfigError)


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
