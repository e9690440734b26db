"""Decodes groups ahead of the codec: threads with a decoding child each, a bounded number of clips ahead.

In:  numbers of groups, in the order in which they will be encoded.
Out: each group's clips with their frames or refusals, in the order of the plan.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from pipeline.config import PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.encoding.decode_clips import Outcome, decode_clips
from pipeline.records import Clip
from pipeline.shards.layout import excluded
from pipeline.shards.manifest import Manifest


class Prefetcher:
    """Decodes groups while the codec encodes, in the order in which they are requested.

    Each of the `pipeline.decoders` lanes is a thread with a child of its own. The videos of the groups go to the lanes round-robin
    and outcomes are taken from the lanes in the same order, so the order does not depend on which lane is faster.
    """

    def __init__(self, manifest: Manifest, config: PipelineConfig) -> None:
        self._manifest = manifest
        self._lanes = [_Lane(manifest, config) for _ in range(config.decoders)]
        self._requested: dict[int, list[_Lane]] = {}
        self._next_lane = 0

    @property
    def deaths(self) -> int:
        """Decoding children that have died so far."""
        return sum(lane.decoder.deaths for lane in self._lanes)

    @property
    def software(self) -> Counter[str]:
        """Videos per video codec that the decoding device has left to the CPU so far."""
        return sum((lane.decoder.software for lane in self._lanes), Counter())

    def request(self, group: int) -> None:
        """Queue a group for decoding, unless it is already queued."""
        if group in self._requested:
            return
        lanes = []
        for _, clips in groupby(self._manifest.uncommitted(group), key=lambda clip: clip.source):
            lane = self._lanes[self._next_lane % len(self._lanes)]
            self._next_lane += 1
            lane.jobs.put(list(clips))
            lanes.append(lane)
        self._requested[group] = lanes

    def take(self, group: int) -> Iterator[Outcome]:
        """Yield the outcomes of `group`; groups that were requested before it and never taken are discarded."""
        self.request(group)
        oldest = -1
        while oldest != group:
            oldest = next(iter(self._requested))
            for lane in self._requested[oldest]:
                for outcome in lane.take():
                    if oldest == group:
                        yield outcome
            del self._requested[oldest]

    def close(self) -> None:
        """End each thread after the video that it works on, and its child with it."""
        for lane in self._lanes:
            lane.jobs.put(None)


class _Lane:
    """One decoding thread and its child."""

    def __init__(self, manifest: Manifest, config: PipelineConfig) -> None:
        self._folder, self._config = manifest.folder, config
        self.decoder = DecoderProcess(config.limits, config.decode_device)
        self.jobs: queue.Queue[list[Clip] | None] = queue.Queue()
        self._items: queue.Queue[Outcome | BaseException | None] = queue.Queue(maxsize=2 * config.batch * len(config.buckets))
        # A daemon: a worker that is told to stop must not wait for a decoder.
        threading.Thread(target=self._run, name="decode", daemon=True).start()

    def take(self) -> Iterator[Outcome]:
        """Yield the outcomes of the oldest job that has not been taken."""
        while (item := self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            while (clips := self.jobs.get()) is not None:
                for outcome in decode_clips(clips, self.decoder, self._config, excluded(self._folder)):
                    self._items.put(outcome)
                self._items.put(None)
            self.decoder.close()
        except BaseException as error:  # noqa: BLE001 - not swallowed: `take` raises it in the caller's thread
            self._items.put(error)
