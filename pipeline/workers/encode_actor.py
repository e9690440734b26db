"""The encoding actor: one codec on one device, in a process of its own. It imports torch, which planning tasks must not.

In:  numbers of shard groups. Out: committed shards and a `GroupReport` per group; heartbeats meanwhile.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import ray
import torch

from cluster.config.precision import require
from pipeline.config import PipelineConfig
from pipeline.encoding.encoder import GroupEncoder, GroupReport
from pipeline.workers.plan_task import enter_folder
from tokenizer.codec import VideoCodec

_remote: Any = ray.remote  # its type hints lack concurrency groups


@_remote(max_restarts=0, concurrency_groups={"heartbeat": 1})
class EncodeActor:
    """Owns whole shard groups, one after the other. Heartbeats are answered in a thread of their own."""

    def __init__(self, config: PipelineConfig, weights: Path, folder: Path, accept: bool = False) -> None:
        enter_folder(folder)
        self._config, self._weights, self._accept = config, weights, accept
        self._encoder: GroupEncoder | None = None

    def ready(self) -> int:
        """Load the codec; its errors reach the driver unchanged. Returns the process id."""
        device = "cuda" if self._config.gpus_per_worker > 0 else "cpu"
        warning = require("pipeline.dtype", self._config.dtype, device, accept=self._accept)
        if warning:
            print(f"pipeline.dtype: {warning}", flush=True)
        torch.set_num_threads(self._config.threads)
        dtype = torch.bfloat16 if self._config.dtype == "bfloat16" else torch.float32  # the driver has settled `auto`
        codec = VideoCodec.load(self._weights, device=device, dtype=dtype)
        self._encoder = GroupEncoder(self._config.output, self._config, codec)
        return os.getpid()

    def encode(self, group: int, ahead: int | None) -> GroupReport:
        """Encode and commit one group; `ahead` is decoded meanwhile."""
        assert self._encoder is not None
        return self._encoder.encode(group, ahead)

    @ray.method(concurrency_group="heartbeat")
    def beat(self) -> int:
        """Return how much has been done so far (`GroupEncoder.steps`)."""
        return self._encoder.steps if self._encoder is not None else 0
