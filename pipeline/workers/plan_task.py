"""The planning task: some videos in, one part file out. It is a module of its own so that its workers need not import torch."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

import ray

from cluster.tables.table_list import LIST
from pipeline.books.parts import write_part
from pipeline.config import PipelineConfig
from pipeline.decoding import persistent
from pipeline.planning.planner import plan_video, refused
from pipeline.records import PartReport
from pipeline.shards.generation import Generation
from pipeline.shards.layout import VIDEOS
from pipeline.workers.heartbeat import HeartbeatFile


def enter_folder(folder: Path) -> None:
    """Change to the driver's working folder, so that relative paths of the corpus mean the same in a worker."""
    if folder.is_dir():
        os.chdir(folder)


def heartbeat_path(part: Path) -> Path:
    """Return the heartbeat file of the task that writes `part`."""
    return part.with_suffix(".at")


def generation_stamp(part: Path) -> int:
    """Return when the list of videos of the current generation was written (nanoseconds), 0 where there is none."""
    try:
        return (part.parent / VIDEOS / LIST).stat().st_mtime_ns
    except FileNotFoundError:
        return 0


@ray.remote
def plan_part(number: int, config: PipelineConfig, path: Path, folder: Path, hung: dict[int, str], stamp: int) -> PartReport:
    """Plan the videos of part `number` and commit its file `path`. folder: the driver's working folder.

    hung: videos, by their index, to be refused without being opened because earlier tasks hung over them, each with the reason.
    stamp: `generation_stamp` when the task was submitted; a task that was given up and wakes up later must not write its part into
    another generation.
    """
    enter_folder(folder)
    heartbeat = HeartbeatFile(heartbeat_path(path))
    heartbeat.at(0)
    generation = Generation.open(path.parent.parent)
    if generation is None:  # merged, or removed, since the task was submitted
        return PartReport(0, 0, 0, {})
    videos = generation.part(number, config.videos_per_task)
    captioner = None
    if config.captioner.weights is not None:
        from pipeline.planning.captioner import load

        captioner = load(config.captioner.model_dump_json())
    with persistent.DECODER.use(config.limits, config.decode_device) as decoder:
        deaths, software, decoder.beat = decoder.deaths, Counter(decoder.software), heartbeat.beat
        plans = []
        for number, video in enumerate(videos):
            heartbeat.at(number)
            if number in hung:
                plans.append(refused(video, "", "probe", "stalled", hung[number]))
            else:
                plans.append(plan_video(video, config, decoder, captioner))
        deaths, software = decoder.deaths - deaths, decoder.software - software
    if generation_stamp(path) == stamp:
        write_part(path, plans)
    return PartReport(len(plans), sum(len(plan.clips) for plan in plans), deaths, dict(software))
