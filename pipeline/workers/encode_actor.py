"""DOC from pipeline/workers/encode_pool.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import torch

from pipeline.config import PipelineConfig
from pipeline.encoding.encoder import GroupEncoder, GroupReport
from pipeline.workers.plan_task import stand_in
from tokenizer.codec import VideoCodec

_remote: Any = ray.remote  # its types lack concurrency groups


@_remote(max_restarts=0, concurrency_groups={"heartbeat": 1})
class _EncodeActor:
    """One codec on one device; owns whole shard groups. A thread beside the codec's answers heartbeats."""

    def __init__(self, config: PipelineConfig, weights: Path, folder: Path) -> None:
        stand_in(folder)
        self._config, self._weights = config, weights
        self._encoder: GroupEncoder | None = None

    def ready(self) -> int:
        """Load the codec; errors reach the driver as they are."""
        device = "cuda" if self._config.gpus_per_worker > 0 else "cpu"
        torch.set_num_threads(self._config.threads)
        codec = VideoCodec.load(self._weights, device=device, dtype=getattr(torch, self._config.dtype))
        self._encoder = GroupEncoder(self._config.output, self._config, codec)
        return os.getpid()

    def encode(self, group: int, ahead: int | None) -> GroupReport:
        """Encode and commit one group."""
        assert self._encoder is not None
        return self._encoder.encode(group, ahead)

    @ray.method(concurrency_group="heartbeat")
    def beat(self) -> int:
        """Say how much has been done so far (`GroupEncoder.steps`)."""
        return self._encoder.steps if self._encoder is not None else 0
