"""A decoding child that outlives a task: its start costs as much as some videos.

In:  limits. Out: a `DecoderProcess` for one task at a time.
Called by: pipeline.ray_plan, in Ray's workers. It stands alone because Ray copies a task's own module by value.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

from pipeline.config import DecodeLimits
from pipeline.decoding.process import DecoderProcess
from pipeline.video import CPU

_IDLE = 5.0
"""Seconds without a task after which the child is ended."""


class PersistentDecoder:
    """One child of this process, kept from task to task and ended when it is idle."""

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._decoder: DecoderProcess | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    @contextmanager
    def use(self, limits: DecodeLimits, device: str = CPU) -> Iterator[DecoderProcess]:
        """Give the child for one task."""
        with self._lock:
            if self._timer is not None:
                self._timer.cancel()
            if self._decoder is not None and (self._decoder.limits, self._decoder.device) != (limits, device):
                self._decoder.close()
                self._decoder = None
            self._decoder = self._decoder or DecoderProcess(limits, device)
            try:
                yield self._decoder
            finally:
                self._timer = threading.Timer(self._idle, self._end)
                self._timer.daemon = True
                self._timer.start()

    def _end(self) -> None:
        with self._lock:
            if self._timer is threading.current_thread() and self._decoder is not None:
                self._decoder.close()


DECODER = PersistentDecoder(_IDLE)
