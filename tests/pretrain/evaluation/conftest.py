"""A tiny untrained model, its tokenizer and held-out shards of a real video."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.config import Config
from pretrain.sampling.generate import VideoGenerator
from tests.helpers import eval_job


@pytest.fixture(scope="module")
def job(tmp_path_factory: pytest.TempPathFactory, clips: Path) -> Config:
    """Twelve held-out clips of 9 frames of 32x40."""
    return eval_job.make(tmp_path_factory.mktemp("eval"), clips / "carphone_pristine.mp4", 12)


@pytest.fixture(scope="module")
def generator(job: Config) -> VideoGenerator:
    """The model, ready to sample."""
    return VideoGenerator.load(job, bucket=eval_job.BUCKET.name)
