"""The planning task: some videos in, one part file out. It stands alone so that its workers need not import torch.

Called by: pipeline.ray_job.
"""

from __future__ import annotations

import os
from pathlib import Path

import ray

from pipeline import kept
from pipeline.config import PipelineConfig
from pipeline.ledger import write_json
from pipeline.plan import plan_video
from pipeline.records import SourceVideo


def stand_in(folder: Path) -> None:
    """Stand where the driver stands, so that relative paths of the corpus mean the same in a worker."""
    if folder.is_dir():
        os.chdir(folder)


@ray.remote
def plan_part(videos: list[SourceVideo], config: PipelineConfig, path: Path, folder: Path) -> tuple[int, int, int]:
    """Plan some videos and commit their part file. folder: the driver's.

    Returns the numbers of videos, of clips and of decoders that died.
    """
    stand_in(folder)
    captioner = None
    if config.captioner.weights is not None:
        from pipeline.captioner import load

        captioner = load(config.captioner.model_dump_json())
    with kept.DECODER.use(config.limits) as decoder:
        before = decoder.deaths
        plans = [plan_video(video, config, decoder, captioner) for video in videos]
        deaths = decoder.deaths - before
    write_json(path, [plan.plain() for plan in plans])
    return len(plans), sum(len(plan.clips) for plan in plans), deaths
