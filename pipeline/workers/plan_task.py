"""The planning task: some videos in, one part file out. It stands alone so that its workers need not import torch.

Called by: pipeline.ray_planning.
"""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import ray

from cluster.runtime.atomic_files import write_json
from pipeline.config import PipelineConfig
from pipeline.decoding import persistent
from pipeline.planning.planner import plan_video, refused
from pipeline.records import PartReport, SourceVideo
from pipeline.shards.layout import SOURCES
from pipeline.workers.heartbeat import Sign


def stand_in(folder: Path) -> None:
    """Stand where the driver stands, so that relative paths of the corpus mean the same in a worker."""
    if folder.is_dir():
        os.chdir(folder)


def sign_of(part: Path) -> Path:
    """Where the task of a part says how far it is (pipeline.signs)."""
    return part.with_suffix(".at")


def listed(part: Path) -> int:
    """When the list of the generation that is being planned was written (nanoseconds); 0 for none."""
    try:
        return part.with_name(SOURCES).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@ray.remote
def plan_part(
    videos: list[SourceVideo], config: PipelineConfig, path: Path, folder: Path, hung: dict[int, str], stamp: int
) -> PartReport:
    """Plan some videos and commit their part file. folder: the driver's.

    hung: videos, by their place, that are refused unseen because the task stood still over them, and what is said of each.
    stamp: `listed` when the task was made; a task that was given up and wakes up later writes nothing into another generation.
    """
    stand_in(folder)
    sign = Sign(sign_of(path))
    sign.at(0)
    captioner = None
    if config.captioner.weights is not None:
        from pipeline.planning.captioner import load

        captioner = load(config.captioner.model_dump_json())
    with persistent.DECODER.use(config.limits, config.decode_device) as decoder:
        deaths, software, decoder.beat = decoder.deaths, Counter(decoder.software), sign.beat
        plans = []
        for number, video in enumerate(videos):
            sign.at(number)
            if number in hung:
                plans.append(refused(video, "", "probe", "stalled", hung[number]))
            else:
                plans.append(plan_video(video, config, decoder, captioner))
        deaths, software = decoder.deaths - deaths, decoder.software - software
    if listed(path) == stamp:
        write_json(path, [plan.plain() for plan in plans])
    return PartReport(len(plans), sum(len(plan.clips) for plan in plans), deaths, dict(software))
