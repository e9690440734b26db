"""A decoding child that is kept from one planning task to the next: starting one costs as much as some videos.

In:  limits.
Out: a `DecoderProcess` for one task at a time.

`DECODER` must stay in a module of its own: Ray copies the module of a task by value, and a copy would not be kept.
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
    """One child of this process, kept from task to task and ended once it has been idle for `idle` seconds."""

    def __init__(self, idle: float) -> None:
        self._idle = idle
        self._decoder: DecoderProcess | None = None
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    @contextmanager
    def use(self, limits: DecodeLimits, device: str = CPU) -> Iterator[DecoderProcess]:
        """Lend the child to one task; it is replaced if limits or device differ from the last task's."""
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
