"""The planning task: some videos in, one part file out. It stands alone so that its workers need not import torch.

Called by: pipeline.ray_job.
"""

from __future__ import annotations

import os
from pathlib import Path

import ray

from pipeline.config import PipelineConfig
from pipeline.decoder import DecoderProcess
from pipeline.ledger import write_json
from pipeline.plan import plan_video
from pipeline.records import SourceVideo


def stand_in(folder: Path) -> None:
    """Stand where the driver stands, so that relative paths of the corpus mean the same in a worker."""
    if folder.is_dir():
        os.chdir(folder)


@ray.remote
def plan_part(videos: list[SourceVideo], config: PipelineConfig, path: Path, folder: Path) -> tuple[int, int]:
    """Plan some videos and commit their part file. Returns the numbers of videos and of clips. folder: the driver's."""
    stand_in(folder)
    with DecoderProcess(config.limits) as decoder:
        plans = [plan_video(video, config, decoder) for video in videos]
    write_json(path, [plan.plain() for plan in plans])
    return len(plans), sum(len(plan.clips) for plan in plans)
