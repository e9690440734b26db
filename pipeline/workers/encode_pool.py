"""The encoding workers of a job: Ray actors that own whole shard groups, and what happens when one dies or hangs.

In:  the configuration and the groups that are still to be encoded.
Out: `GroupReport`s as groups are committed.
Called by: pipeline.ray_job. Only group numbers and reports pass through Ray.
"""

from __future__ import annotations

import os
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import (
    RayTaskError,
)

from cluster.config import Config
from cluster.metrics import Meter
from cluster.runtime.malloc import ENVIRONMENT
from pipeline.config import PipelineConfig
from pipeline.encoding.encoder import GroupReport
from pipeline.workers.encode_actor import _EncodeActor
from pipeline.workers.errors import LOST, JobError, cause, one_line
from tokenizer.config import TokenizerConfig

_LOOK = 5.0
"""Seconds between heartbeats."""
_BEGIN = 300.0
"""Seconds at least that a worker gets from being asked for to its first heartbeat, however short pipeline.stall_seconds is."""


class Pool:
    """Actors, the groups each of them holds (at work on the first, decoding ahead for the second), and their deaths."""

    def __init__(self, config: Config, todo: Sequence[int], meter: Meter) -> None:
        self._config = config.get(PipelineConfig)
        self._weights = config.get(TokenizerConfig).weights.absolute()
        self._meter = meter
        self.todo = deque(todo)
        self._actors: dict[int, Any] = {}
        self._held: dict[int, list[int]] = {}
        self._running: dict[Any, int] = {}
        self._beats: dict[Any, int] = {}
        self._steps: dict[int, int] = {}
        self._moved: dict[int, float] = {}
        self._asked: dict[int, float] = {}
        """When each worker without a heartbeat yet was asked for."""
        self._looked = time.monotonic()
        self._deaths: Counter[int] = Counter()
        self._early_deaths = 0
        self._numbers = count()
        meter.inc("pipeline_retries_total", 0, stage="encode")
        for slot in range(min(self._config.workers, len(self.todo))):
            self._start(slot)

    def _start(self, slot: int) -> None:
        maker: Any = _EncodeActor
        actor = maker.options(
            name=f"encode-{os.getpid()}-{slot}-{next(self._numbers)}",
            num_cpus=self._config.cpus_per_worker,
            num_gpus=self._config.gpus_per_worker,
            # An actor's tensors are made in a thread, so the heap must be told before the process starts.
            runtime_env={"env_vars": {} if self._config.gpus_per_worker else ENVIRONMENT},
        ).remote(self._config.model_copy(update={"output": self._config.output.absolute()}), self._weights, Path.cwd())
        self._actors[slot], self._held[slot] = actor, []
        self._running[actor.ready.options(name="load codec").remote()] = slot
        self._steps.pop(slot, None)
        self._asked[slot] = time.monotonic()

    def _next(self, slot: int) -> None:
        self._asked.pop(slot, None)
        held = self._held[slot]
        while self.todo and len(held) < 2:
            held.append(self.todo.popleft())
        if held:
            name = f"encode group {held[0]}"
            ahead = held[1] if len(held) > 1 else None
            self._running[self._actors[slot].encode.options(name=name).remote(held[0], ahead)] = slot
            self._moved[slot] = time.monotonic()

    def _listen(self) -> None:
        """Take the workers' heartbeats and ask for the next; end a worker at work whose count stands still for too long.

        Its death is then seen like any other. A worker that has not begun waits for a free CPU of the cluster, or has frozen on
        its way: which of them cannot be told, so after as long it is asked for anew, which costs the first nothing.
        """
        now = time.monotonic()
        if now - self._looked < _LOOK:
            return
        self._looked = now
        answered = ray.wait(list(self._beats), num_returns=len(self._beats), timeout=0)[0] if self._beats else []
        for ref in answered:
            slot = self._beats.pop(ref)
            try:
                steps = ray.get(ref)
            except LOST:
                continue
            self._meter.set("pipeline_worker_heartbeat_timestamp_seconds", time.time(), worker=str(slot))
            # The first answer starts the clock: from then on a worker that freezes is found, also while it loads its codec.
            self._asked.pop(slot, None)
            if steps != self._steps.get(slot):
                self._steps[slot], self._moved[slot] = steps, now
        patience = max(_BEGIN, self._config.stall_seconds)
        for slot in [slot for slot, asked in self._asked.items() if now - asked > patience]:
            print(f"worker {slot}: has not begun for {patience:g} s; asking for another in its place", flush=True)
            ray.kill(self._actors[slot])
            self._running = {ref: other for ref, other in self._running.items() if other != slot}
            self._beats = {ref: other for ref, other in self._beats.items() if other != slot}
            self._moved.pop(slot, None)
            self._start(slot)
        waiting = set(self._beats.values())
        for slot, actor in self._actors.items():
            if slot not in waiting:
                self._beats[actor.beat.remote()] = slot
        for slot in set(self._running.values()) & set(self._moved):
            if now - self._moved[slot] > self._config.stall_seconds:
                print(
                    f"worker {slot}: no clip for pipeline.stall_seconds = {self._config.stall_seconds:g} s; ending it",
                    flush=True,
                )
                ray.kill(self._actors[slot])
                self._moved[slot] = now  # should this not end it, it is tried again

    @property
    def busy(self) -> bool:
        """Whether a group is still to be encoded."""
        return bool(self.todo or any(self._held.values()))

    def wait(self) -> Iterator[GroupReport]:
        """Wait for news; give the reports of finished groups."""
        ready, _ = ray.wait(list(self._running), timeout=_LOOK)
        self._listen()
        for ref in ready:
            if ref not in self._running:
                continue  # of a worker that began at the moment when it was given up
            slot = self._running.pop(ref)
            self._moved.pop(slot, None)
            try:
                result = ray.get(ref)
            except LOST as error:
                self._bury(slot, error)
                continue
            except RayTaskError as error:
                raise cause(error) from error
            if isinstance(result, GroupReport):
                self._held[slot].remove(result.group)
                yield result
            self._next(slot)

    def _bury(self, slot: int, error: BaseException) -> None:
        # A hung or half-dead worker must be gone before another one takes over its shards.
        ray.kill(self._actors[slot])
        held = self._held[slot]
        if held:
            self._deaths[held[0]] += 1
            if self._deaths[held[0]] >= self._config.worker_deaths:
                raise JobError(
                    f"shard group {held[0]}: {self._deaths[held[0]]} workers died over it ({one_line(error)}); "
                    "all other shards are kept; look at memory limits, then run again"
                ) from error
        else:
            self._early_deaths += 1
            if self._early_deaths >= self._config.worker_deaths:
                raise JobError(f"workers die before they begin: {one_line(error)}") from error
        print(f"worker {slot} died ({one_line(error)}); a new one takes over", flush=True)
        self._meter.inc("pipeline_retries_total", stage="encode")
        # A heart that beats no more must not be taken for the new worker's.
        self._beats = {ref: owner for ref, owner in self._beats.items() if owner != slot}
        self.todo.extendleft(reversed(held))
        self._start(slot)

    def close(self) -> None:
        """End every actor."""
        for actor in self._actors.values():
            ray.kill(actor)
