"""Planning on Ray, the driver's side: parts of a generation to tasks, and what happens when one dies or hangs.

In:  the videos of a generation, the configuration.
Out: a part file for each part (pipeline.ray_plan writes them), merged into clips.parquet and rejects.parquet.
Called by: pipeline.ray_job. Only names, numbers and paths pass through Ray.
"""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster.metrics import Meter
from cluster.runtime.progress import ProgressBar
from pipeline.config import PipelineConfig
from pipeline.planning.merge import merge
from pipeline.records import SourceVideo
from pipeline.shards.manifest import Manifest
from pipeline.workers.errors import LOST, JobError, cause
from pipeline.workers.heartbeat import Watch
from pipeline.workers.job_metrics import Fallbacks
from pipeline.workers.plan_task import listed, plan_part, sign_of

_TRIES = 3
"""Deaths of a part's task after which the job stops and names it."""
_LOOK = 5.0
"""Seconds between looks at the tasks' signs of life."""


def plan(videos: Sequence[SourceVideo], config: PipelineConfig, manifest: Manifest, meter: Meter) -> None:
    """Plan a generation to its end and merge it. Raises JobError; parts that are ready are kept."""
    size = config.videos_per_task
    parts = [videos[at : at + size] for at in range(0, len(videos), size)]
    todo = [number for number in range(len(parts)) if not manifest.part(number).exists()]
    meter.inc("pipeline_retries_total", 0, stage="plan")
    meter.inc("pipeline_decoder_deaths_total", 0, stage="plan")
    with ProgressBar("plan", len(videos), done=len(videos) - sum(len(parts[number]) for number in todo)) as progress:
        _Tasks(parts, todo, config, manifest, meter).run(progress)
    merge(manifest, config, len(parts))


class _Tasks:
    """The parts that are still to be planned, and the tasks at work on them."""

    def __init__(
        self,
        parts: Sequence[Sequence[SourceVideo]],
        todo: Sequence[int],
        config: PipelineConfig,
        manifest: Manifest,
        meter: Meter,
    ) -> None:
        self._parts, self._config, self._meter = parts, config, meter
        self._path = {number: manifest.part(number).absolute() for number in todo}
        self._todo = deque(todo)
        self._running: dict[Any, int] = {}
        self._watch = Watch(config.stall_seconds)
        self._fallbacks = Fallbacks(config.decode_device, meter)
        self._failures: Counter[int] = Counter()
        self._stalls: Counter[tuple[int, int]] = Counter()

    def run(self, progress: ProgressBar) -> None:
        """Work until every part is there."""
        while self._todo or self._running:
            while self._todo and len(self._running) < 2 * _cpus():
                self._begin(self._todo.popleft())
            for ref in ray.wait(list(self._running), timeout=_LOOK)[0]:
                number = self._running.pop(ref)
                try:
                    report = ray.get(ref)
                except LOST as error:
                    self._again(number, "died", error)
                except RayTaskError as error:
                    raise cause(error) from error
                else:
                    progress.update(report.videos, note=f"{report.clips} clips in the last part")
                    self._meter.inc("pipeline_decoder_deaths_total", report.decoder_deaths, stage="plan")
                    self._fallbacks.add("plan", report.software)
            for ref, number in list(self._running.items()):
                if self._watch.stands_still(sign_of(self._path[number]), time.monotonic()):
                    # Ray ends a worker that is frozen, too. Nobody waits for it: its host may be cut off.
                    ray.cancel(ref, force=True)
                    del self._running[ref]
                    self._stalled(number)

    def _begin(self, number: int) -> None:
        limit = self._config.limits.attempts
        hung = {
            place: f"{self._parts[number][place].source}: planning stood still for pipeline.stall_seconds = "
            f"{self._config.stall_seconds:g} s; quarantined after {limit} attempts"
            for (part, place), count in self._stalls.items()
            if part == number and count >= limit
        }
        path = self._path[number]
        self._watch.begin(sign_of(path))
        task = plan_part.options(name=f"plan part {number}", max_retries=0, num_gpus=self._config.planning_gpus)
        self._running[task.remote(list(self._parts[number]), self._config, path, Path.cwd(), hung, listed(path))] = number

    def _stalled(self, number: int) -> None:
        place = self._watch.position(sign_of(self._path[number]))
        if place is None:
            self._again(number, "stood still")
            return
        self._stalls[number, place] += 1
        print(
            f"planning part {number}: nothing moved for pipeline.stall_seconds = {self._config.stall_seconds:g} s over "
            f"{self._parts[number][place].source}; beginning the part anew",
            flush=True,
        )
        self._meter.inc("pipeline_retries_total", stage="plan")
        self._todo.append(number)

    def _again(self, number: int, what: str, error: BaseException | None = None) -> None:
        self._failures[number] += 1
        self._meter.inc("pipeline_retries_total", stage="plan")
        if self._failures[number] == _TRIES:
            self._watch.stands_still(sign_of(self._path[number]), time.monotonic())
            place = self._watch.position(sign_of(self._path[number])) or 0
            raise JobError(
                f"planning part {number} {what} {_TRIES} times, last over {self._parts[number][place].source}; the other parts "
                "are kept; look at memory and at that video, then run again"
            ) from error
        self._todo.append(number)


def _cpus() -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))
