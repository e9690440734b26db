from __future__ import annotations

import pytest
from pydantic import ValidationError

from pipeline.config import CaptionerConfig, DecodeLimits, PipelineConfig
from pipeline.records import Bucket


def test_a_worker_without_a_gpu_cannot_decode_on_one() -> None:
    with pytest.raises(ValidationError, match="Ray hides all GPUs from such a worker; raise gpus_per_worker"):
        PipelineConfig(decode_device="cuda")
    with pytest.raises(ValidationError):
        PipelineConfig(decode_device="cuda:x", gpus_per_worker=1)
    assert PipelineConfig(decode_device="cuda:1", gpus_per_worker=0.5).decode_device == "cuda:1"


def test_planning_asks_for_one_gpu_for_its_decoder_and_its_captioner() -> None:
    assert PipelineConfig().planning_gpus == 0
    assert PipelineConfig(decode_device="cuda", gpus_per_worker=1, decode_gpus=0.5).planning_gpus == 0.5
    assert PipelineConfig(captioner=CaptionerConfig(gpus=0.75)).planning_gpus == 0.75


def test_buckets_are_read_from_plain_values_and_limits_are_positive() -> None:
    config = PipelineConfig.model_validate({"buckets": [{"frames": 17, "height": 64, "width": 96}]})
    assert config.buckets == (Bucket(frames=17, height=64, width=96),)
    for field in ("seconds", "stall_seconds", "memory_gb"):
        with pytest.raises(ValidationError):
            DecodeLimits(**{field: 0})
