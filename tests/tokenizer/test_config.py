"""The `tokenizer` section: strides that follow from it, and shapes that cannot be trained."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tokenizer.config import AugmentConfig, NetworkConfig, TokenizerConfig, TokenizerTraining


@pytest.mark.parametrize(
    ("network", "spatial", "temporal"),
    [
        ({}, 16, [False, False, True, True, False]),
        ({"patch": 2, "multipliers": (1, 2, 4)}, 8, [True, True, False]),
        ({"temporal_stride": 2}, 16, [False, False, False, True, False]),
        ({"temporal_stride": 1}, 16, [False] * 5),
    ],
)
def test_strides(network: dict[str, object], spatial: int, temporal: list[bool]) -> None:
    config = NetworkConfig.model_validate(network)
    assert config.spatial_stride == spatial
    assert [config.temporal_at(level) for level in range(len(config.multipliers))] == temporal


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"network": {"multipliers": (1, 2)}}, "at least 3 levels"),
        (
            {"training": {"buckets": [{"frames": 5, "height": 40, "width": 32, "batch": 1}]}},
            "not a multiple of the spatial stride 16",
        ),
        ({"training": {"buckets": [{"frames": 5, "height": 16, "width": 32, "batch": 1}]}}, "at least 24x24 pixels"),
        ({"training": {"buckets": [{"frames": 4, "height": 32, "width": 32, "batch": 1}]}}, "use 1 \\+ 4n frames"),
    ],
)
def test_what_cannot_be_trained_is_named(section: dict[str, object], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TokenizerConfig.model_validate(section)


def test_augmentation_is_off_by_default() -> None:
    assert not AugmentConfig().active
    assert AugmentConfig(backwards=True).active


def test_training_ends_with_whole_quantization() -> None:
    with pytest.raises(ValueError, match=r"unquantized_steps \+ quantization_ramp is 2000 and training\.steps 1500"):
        TokenizerTraining(steps=1500, unquantized_steps=1000, quantization_ramp=1000)
    assert TokenizerTraining(steps=2001, unquantized_steps=1000, quantization_ramp=1000).quantization_ramp == 1000
    assert TokenizerTraining(steps=1).steps == 1
