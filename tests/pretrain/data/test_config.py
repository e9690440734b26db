"""What the section `curriculum` accepts, refuses and derives."""

from __future__ import annotations

from pathlib import Path

import pytest

from pretrain.data.config import CurriculumConfig, Mix, Stage, ranks_per_sequence


def test_steps_or_tokens_and_batch_or_batch_tokens() -> None:
    mix = (Mix(bucket="f005x64x64", batch=2),)
    for wrong in ({}, {"steps": 3, "tokens": 5.0}):
        with pytest.raises(ValueError, match="stage a: give either steps or tokens"):
            Stage(name="a", mix=mix, **wrong)  # type: ignore[arg-type]
    for wrong in ({}, {"batch": 3, "batch_tokens": 5.0}):
        with pytest.raises(ValueError, match=r"either batch \(samples\) or batch_tokens"):
            Mix(bucket="f005x64x64", **wrong)  # type: ignore[arg-type]


def test_a_prefix_of_a_bucket_is_a_shape_of_its_own() -> None:
    assert Mix(bucket="f005x64x64", batch=2).shape == "f005x64x64"
    assert Mix(bucket="f005x64x64", frames=1, batch=2).shape == "f001x64x64"
    with pytest.raises(ValueError, match="frames 9 is more than bucket f005x64x64 holds"):
        Mix(bucket="f005x64x64", frames=9, batch=2)


def test_ranks_share_a_sequence_as_far_as_they_divide() -> None:
    stage = Stage(name="long", steps=1, mix=(Mix(bucket="f005x64x64", batch=3),), sequence_parallel=4)
    assert [ranks_per_sequence(stage, world) for world in (1, 2, 3, 4, 6, 8)] == [1, 2, 1, 4, 2, 4]


def test_a_url_keeps_its_slashes() -> None:
    config = CurriculumConfig.model_validate({"shards": ["s3://bucket/shards", "a/b"]})
    assert config.shards == ("s3://bucket/shards", Path("a/b"))
