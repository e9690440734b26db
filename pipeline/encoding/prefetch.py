"""DOC from pipeline/encoding/encoder.py."""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Iterator
from itertools import groupby

from pipeline.config import PipelineConfig
from pipeline.decoding.process import DecoderProcess
from pipeline.encoding.decode_clips import Outcome, decoded
from pipeline.records import Clip
from pipeline.shards.exclusions import excluded
from pipeline.shards.manifest import Manifest


class Feed:
    """Decodes groups beside the codec, in the order they are asked for, a bounded number of clips ahead.

    Each of `pipeline.decoders` lanes is a thread with a child of its own; the videos of the groups go to the lanes in turn,
    and outcomes are taken from them in the same turn, so their order does not depend on which lane is faster.
    """

    def __init__(self, manifest: Manifest, config: PipelineConfig) -> None:
        self._manifest = manifest
        self._lanes = [_Lane(manifest, config) for _ in range(config.decoders)]
        self._asked: dict[int, list[_Lane]] = {}
        self._turn = 0

    @property
    def deaths(self) -> int:
        """Children that have died so far."""
        return sum(lane.decoder.deaths for lane in self._lanes)

    @property
    def software(self) -> Counter[str]:
        """Videos by codec that the decoding device has left to the CPU so far."""
        return sum((lane.decoder.software for lane in self._lanes), Counter())

    def ask(self, group: int) -> None:
        """Queue a group for decoding, unless it is queued already."""
        if group in self._asked:
            return
        lanes = []
        for _, clips in groupby(self._manifest.uncommitted(group), key=lambda clip: clip.source):
            lane = self._lanes[self._turn % len(self._lanes)]
            self._turn += 1
            lane.jobs.put(list(clips))
            lanes.append(lane)
        self._asked[group] = lanes

    def take(self, group: int) -> Iterator[Outcome]:
        """Give the outcomes of `group`; groups asked for before it and never taken are thrown away."""
        self.ask(group)
        found = -1
        while found != group:
            found = next(iter(self._asked))
            for lane in self._asked[found]:
                for outcome in lane.take():
                    if found == group:
                        yield outcome
            del self._asked[found]

    def close(self) -> None:
        """End the threads after the videos they work on, and the children with them."""
        for lane in self._lanes:
            lane.jobs.put(None)


class _Lane:
    """One decoding thread and its child."""

    def __init__(self, manifest: Manifest, config: PipelineConfig) -> None:
        self._folder, self._config = manifest.folder, config
        self.decoder = DecoderProcess(config.limits, config.decode_device)
        self.jobs: queue.Queue[list[Clip] | None] = queue.Queue()
        self._items: queue.Queue[Outcome | BaseException | None] = queue.Queue(maxsize=2 * config.batch * len(config.buckets))
        # A daemon: a worker that is told to end must not wait for a decoder.
        threading.Thread(target=self._run, name="decode", daemon=True).start()

    def take(self) -> Iterator[Outcome]:
        """Give the outcomes of the oldest job that has not been taken."""
        while (item := self._items.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item

    def _run(self) -> None:
        try:
            while (clips := self.jobs.get()) is not None:
                for outcome in decoded(clips, self.decoder, self._config, excluded(self._folder)):
                    self._items.put(outcome)
                self._items.put(None)
            self.decoder.close()
        except BaseException as error:  # noqa: BLE001 - not swallowed: `take` raises it in the caller's thread
            self._items.put(error)
