"""A stage replaces parts of the objective's configuration."""

from __future__ import annotations

from pretrain.data.config import Mix, Stage
from pretrain.objective.config import ObjectiveConfig, stage_objective


def test_a_stage_sets_its_own_window_mask_and_corruption() -> None:
    base = ObjectiveConfig(window=8, flip_max=0.25, condition_drop=0.2)
    mix = (Mix(bucket="f005x64x64", batch=2),)
    assert stage_objective(Stage(name="a", steps=1, mix=mix), base) == base
    stage = Stage(name="b", steps=1, mix=mix, window=0, frame_mask=0.3, flip_max=0.0, flip_delta=0.0)
    expected = base.model_copy(update={"window": 0, "frame_mask": 0.3, "flip_max": 0.0, "flip_delta": 0.0})
    assert stage_objective(stage, base) == expected
