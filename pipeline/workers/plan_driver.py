"""Planning on Ray, the driver's side: a generation's videos go to tasks in parts, and a task that dies or hangs is replaced.

In:  a generation, the configuration.
Out: a part file per part (plan_task.py writes them), merged into the tables of clips and rejects. Only numbers and paths pass
     through Ray: a part is a range of rows of the list of videos.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster.metrics import Meter
from cluster.runtime.progress import ProgressBar
from pipeline.books.merge import merge
from pipeline.books.parts import part_exists
from pipeline.config import PipelineConfig
from pipeline.shards.generation import Generation
from pipeline.shards.manifest import Manifest
from pipeline.workers.book_tasks import on_ray
from pipeline.workers.errors import LOST, JobError, cause
from pipeline.workers.heartbeat import StallDetector
from pipeline.workers.job_metrics import Fallbacks
from pipeline.workers.plan_task import generation_stamp, heartbeat_path, plan_part

MAX_DEATHS = 3
"""Deaths of a part's task after which the job stops and names the part."""
POLL_SECONDS = 5.0
"""Seconds between two checks of the tasks' heartbeats."""


def plan_videos(generation: Generation, config: PipelineConfig, manifest: Manifest, meter: Meter) -> None:
    """Plan a generation to its end and merge it. Raises JobError; finished parts are kept."""
    size = config.videos_per_task
    parts = -(-generation.count // size)
    todo = [number for number in range(parts) if not part_exists(manifest.part(number))]
    left = sum(min(size, generation.count - number * size) for number in todo)
    meter.inc("pipeline_retries_total", 0, stage="plan")
    meter.inc("pipeline_decoder_deaths_total", 0, stage="plan")
    with ProgressBar("plan", generation.count, done=generation.count - left) as progress:
        _Tasks(generation, todo, config, manifest, meter).run(progress)
    merge(manifest, generation, config, parts, on_ray)


class _Tasks:
    """The parts that are still to be planned, and the running tasks."""

    def __init__(
        self,
        generation: Generation,
        todo: list[int],
        config: PipelineConfig,
        manifest: Manifest,
        meter: Meter,
    ) -> None:
        self._generation, self._config, self._meter = generation, config, meter
        self._manifest = manifest
        self._todo = deque(todo)
        self._running: dict[Any, int] = {}
        """Part of each running task, by Ray's reference."""
        size, self._videos = config.videos_per_task, generation.count
        self._planned = self._videos - sum(min(size, self._videos - number * size) for number in todo)
        self._detector = StallDetector(config.stall_seconds)
        self._fallbacks = Fallbacks(config.decode_device, meter)
        self._failures: Counter[int] = Counter()
        """Failed tasks by part."""
        self._stalls: Counter[tuple[int, int]] = Counter()
        """Stalls by (part, index of the video in it)."""

    def _count(self, videos: int) -> None:
        self._planned += videos
        self._meter.set("pipeline_planning_progress_ratio", self._planned / max(1, self._videos))

    def run(self, progress: ProgressBar) -> None:
        """Submit and watch tasks until every part is planned."""
        self._count(0)
        while self._todo or self._running:
            while self._todo and len(self._running) < 2 * _cpus():
                self._submit(self._todo.popleft())
            for ref in ray.wait(list(self._running), timeout=POLL_SECONDS)[0]:
                number = self._running.pop(ref)
                try:
                    report = ray.get(ref)
                except LOST as error:
                    self._retry(number, "died", error)
                except RayTaskError as error:
                    raise cause(error) from error
                else:
                    progress.update(report.videos, note=f"{report.clips} clips in the last part")
                    self._count(report.videos)
                    self._meter.inc("pipeline_decoder_deaths_total", report.decoder_deaths, stage="plan")
                    self._fallbacks.add("plan", report.software)
            for ref, number in list(self._running.items()):
                if self._detector.stalled(heartbeat_path(self._path(number)), time.monotonic()):
                    # This ends a frozen worker, too. The driver does not wait for it: its host may be cut off.
                    ray.cancel(ref, force=True)
                    del self._running[ref]
                    self._stalled(number)

    def _path(self, number: int) -> Path:
        return self._manifest.part(number).absolute()

    def _source(self, number: int, index: int) -> str:
        return self._generation.part(number, self._config.videos_per_task)[index].source

    def _submit(self, number: int) -> None:
        limit = self._config.limits.attempts
        hung = {
            index: f"{self._source(number, index)}: planning made no progress for pipeline.stall_seconds = "
            f"{self._config.stall_seconds:g} s; quarantined after {limit} attempts"
            for (part, index), count in self._stalls.items()
            if part == number and count >= limit
        }
        path = self._path(number)
        self._detector.reset(heartbeat_path(path))
        task = plan_part.options(name=f"plan part {number}", max_retries=0, num_gpus=self._config.planning_gpus)
        ref = task.remote(number, self._config, path, Path.cwd(), hung, generation_stamp(path))
        self._running[ref] = number

    def _stalled(self, number: int) -> None:
        index = self._detector.position(heartbeat_path(self._path(number)))
        if index is None:
            self._retry(number, "stalled")
            return
        self._stalls[number, index] += 1
        print(
            f"planning part {number}: no progress for pipeline.stall_seconds = {self._config.stall_seconds:g} s over "
            f"{self._source(number, index)}; restarting the part",
            flush=True,
        )
        self._meter.inc("pipeline_retries_total", stage="plan")
        self._todo.append(number)

    def _retry(self, number: int, what: str, error: BaseException | None = None) -> None:
        self._failures[number] += 1
        self._meter.inc("pipeline_retries_total", stage="plan")
        if self._failures[number] == MAX_DEATHS:
            path = heartbeat_path(self._path(number))
            self._detector.stalled(path, time.monotonic())  # so that it has read the last position
            index = self._detector.position(path) or 0
            raise JobError(
                f"planning part {number} {what} {MAX_DEATHS} times, last over {self._source(number, index)}; the other "
                "parts are kept; check memory limits and that video, then run again"
            ) from error
        self._todo.append(number)


def _cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
