"""The encoding workers of a job: Ray actors that own whole shard groups, and what happens when one dies or hangs.

In:  the configuration and the groups that are still to be encoded.
Out: a `GroupReport` per committed group. Only group numbers and reports pass through Ray.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayTaskError

from cluster.config import ClusterConfig, Config
from cluster.metrics import Meter
from cluster.runtime.memory import ENVIRONMENT
from pipeline.config import PipelineConfig
from pipeline.encoding.encoder import GroupReport
from pipeline.workers.encode_actor import EncodeActor
from pipeline.workers.errors import LOST, JobError, cause, first_line
from tokenizer.config import TokenizerConfig

HEARTBEAT_SECONDS = 5.0
"""Seconds between heartbeats."""
START_SECONDS = 300.0
"""Seconds that a worker gets at least from its request to its first heartbeat, however short pipeline.stall_seconds is."""
HELD_GROUPS = 2
"""Groups that a worker holds: it encodes the first and decodes the second ahead."""


@dataclass
class Worker:
    """One encoding actor as the driver sees it. Times are of the monotonic clock; Ray's references are of type Any."""

    slot: int
    """Number among the job's workers; the actor that replaces a lost one gets the same."""
    actor: Any
    call: Any
    """Reference of the running call (loading the codec, or encoding a group); None while idle."""
    called: float
    """When that call was made."""
    groups: list[int] = field(default_factory=list)
    """Groups that it holds, the one at work first."""
    started: bool = False
    """Whether it has answered a heartbeat or finished a call; until then it may be frozen, or waiting for a free CPU."""
    heartbeat: Any = None
    """Reference of the heartbeat that is not answered yet."""
    steps: int | None = None
    """Its count at the last heartbeat."""
    progressed: float | None = None
    """When that count last changed; None before the first heartbeat and between two calls."""


class Pool:
    """The workers of a job, the groups that wait for one, and the deaths so far."""

    def __init__(self, config: Config, todo: Sequence[int], meter: Meter) -> None:
        self._config = config.get(PipelineConfig)
        self._accept = config.get(ClusterConfig).accept_slow_dtype
        self._weights = config.get(TokenizerConfig).weights.absolute()
        self._meter = meter
        self.todo = deque(todo)
        self._workers: dict[int, Worker] = {}
        self._looked = time.monotonic()
        self._deaths: Counter[int] = Counter()
        """Workers that died, by the group that they were at."""
        self._early_deaths = 0
        self._actor_numbers = count()
        meter.inc("pipeline_retries_total", 0, stage="encode")
        for slot in range(min(self._config.workers, len(self.todo))):
            self._start(slot)

    @property
    def busy(self) -> bool:
        """Whether a group is still to be encoded."""
        return bool(self.todo or any(worker.groups for worker in self._workers.values()))

    def wait(self) -> Iterator[GroupReport]:
        """Wait for a call to return, at most HEARTBEAT_SECONDS; yield the reports of finished groups."""
        # The oldest call first, so that no worker waits for the others.
        running = sorted((worker for worker in self._workers.values() if worker.call is not None), key=lambda w: w.called)
        ready, _ = ray.wait([worker.call for worker in running], timeout=HEARTBEAT_SECONDS)
        self._listen()
        workers = {worker.call: worker for worker in self._workers.values() if worker.call is not None}
        for call in ready:
            if call not in workers:
                continue  # of a worker that started at the very moment when it was given up
            worker = workers[call]
            worker.call = worker.progressed = None
            try:
                result = ray.get(call)
            except LOST as error:
                self._bury(worker, error)
                continue
            except RayTaskError as error:
                raise cause(error) from error
            if isinstance(result, GroupReport):
                worker.groups.remove(result.group)
                yield result
            self._hand_out(worker)

    def close(self) -> None:
        """End every actor."""
        for worker in self._workers.values():
            ray.kill(worker.actor)

    def _start(self, slot: int) -> None:
        """Request an actor for a slot. Its record is a new one, so that late answers of an earlier actor do not count for it."""
        maker: Any = EncodeActor
        actor = maker.options(
            name=f"encode-{os.getpid()}-{slot}-{next(self._actor_numbers)}",
            num_cpus=self._config.cpus_per_worker,
            num_gpus=self._config.gpus_per_worker,
            # An actor's tensors are allocated in a thread, so the heap must be configured before the process starts.
            runtime_env={"env_vars": {} if self._config.gpus_per_worker else ENVIRONMENT},
        ).remote(
            self._config.model_copy(update={"output": self._config.output.absolute()}), self._weights, Path.cwd(), self._accept
        )
        call = actor.ready.options(name="load codec").remote()
        self._workers[slot] = Worker(slot, actor, call, time.monotonic())

    def _hand_out(self, worker: Worker) -> None:
        """Give a worker that has finished its call the next group, and one more to decode ahead."""
        worker.started = True
        while self.todo and len(worker.groups) < HELD_GROUPS:
            worker.groups.append(self.todo.popleft())
        if worker.groups:
            first, ahead = worker.groups[0], worker.groups[1] if len(worker.groups) > 1 else None
            worker.call = worker.actor.encode.options(name=f"encode group {first}").remote(first, ahead)
            worker.called = worker.progressed = time.monotonic()

    def _listen(self) -> None:
        """Every HEARTBEAT_SECONDS: take the answered heartbeats, replace workers that do not start, ask again, end hung ones."""
        now = time.monotonic()
        if now - self._looked < HEARTBEAT_SECONDS:
            return
        self._looked = now
        self._take_heartbeats(now)
        self._replace_unstarted(now)
        for worker in self._workers.values():
            if worker.heartbeat is None:
                worker.heartbeat = worker.actor.beat.remote()
        self._end_hung(now)

    def _take_heartbeats(self, now: float) -> None:
        asked = {worker.heartbeat: worker for worker in self._workers.values() if worker.heartbeat is not None}
        for ref in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0] if asked else []:
            worker = asked[ref]
            worker.heartbeat = None
            try:
                steps = ray.get(ref)
            except LOST:
                continue
            self._meter.set("pipeline_worker_heartbeat_timestamp_seconds", time.time(), worker=str(worker.slot))
            # The first answer starts the clock: from then on a worker that freezes is found, also while it loads its codec.
            worker.started = True
            if steps != worker.steps:
                worker.steps, worker.progressed = steps, now

    def _replace_unstarted(self, now: float) -> None:
        """Replace workers that have not started: each waits for a free CPU of the cluster, or froze on its way.

        The driver cannot tell which, so after a while it requests another one; a worker that was only waiting loses nothing.
        """
        patience = max(START_SECONDS, self._config.stall_seconds)
        for worker in list(self._workers.values()):
            if not worker.started and now - worker.called > patience:
                print(
                    f"worker {worker.slot}: has not started within {patience:g} s; requesting another in its place", flush=True
                )
                ray.kill(worker.actor)
                self._start(worker.slot)

    def _end_hung(self, now: float) -> None:
        """Kill workers whose count has not changed for too long during a call; their death is then noticed like any other."""
        limit = self._config.stall_seconds
        for worker in self._workers.values():
            if worker.call is not None and worker.progressed is not None and now - worker.progressed > limit:
                print(f"worker {worker.slot}: no clip for pipeline.stall_seconds = {limit:g} s; killing it", flush=True)
                ray.kill(worker.actor)
                worker.progressed = now  # should it survive this, it is killed again

    def _bury(self, worker: Worker, error: BaseException) -> None:
        """Put the groups of a lost worker back and start another. Raises JobError after too many deaths over one group."""
        # A hung or half-dead worker must be gone before another one takes over its shards.
        ray.kill(worker.actor)
        if worker.groups:
            group = worker.groups[0]
            self._deaths[group] += 1
            if self._deaths[group] >= self._config.worker_deaths:
                raise JobError(
                    f"shard group {group}: {self._deaths[group]} workers died while encoding it ({first_line(error)}); "
                    "all other shards are kept; check memory limits, then run again"
                ) from error
        else:
            self._early_deaths += 1
            if self._early_deaths >= self._config.worker_deaths:
                raise JobError(f"workers die before they start encoding: {first_line(error)}") from error
        print(f"worker {worker.slot} died ({first_line(error)}); a new one takes over", flush=True)
        self._meter.inc("pipeline_retries_total", stage="encode")
        self.todo.extendleft(reversed(worker.groups))
        self._start(worker.slot)
        # The new one may find no free CPU, where a whole host has died; those that had run out of groups go on with these.
        for other in self._workers.values():
            if other.started and other.call is None:
                self._hand_out(other)
