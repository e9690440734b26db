"""A stream of copies for tests without a GPU: nothing is copied before someone waits, which is as late as a GPU could be."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor


class DelayedStream:
    """Queues copies of CPU tensors; a mark makes those queued before it when it is waited for."""

    def __init__(self) -> None:
        self.locked: dict[int, int] = {}
        """Bytes of locked memory, by address."""
        self.locks = 0
        self.copies = 0
        """Made so far."""
        self._queue: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    def takes(self, tensor: Tensor) -> bool:
        return True

    def follow(self) -> None:
        pass

    def copy(self, target: Tensor, source: Tensor) -> None:
        self._queue.append(lambda: target.copy_(source))

    def mark(self) -> DelayedMark:
        return DelayedMark(self)

    def lock(self, memory: Tensor) -> str:
        self.locked[memory.data_ptr()] = memory.nbytes
        self.locks += 1
        return ""

    def unlock(self, address: int) -> None:
        del self.locked[address]

    def run(self) -> None:
        """Make all copies of the queue."""
        with self._lock:
            while self._queue:
                self._queue.pop(0)()
                self.copies += 1


class DelayedMark:
    """The writing thread waits for the training thread, as the host waits for the card: it must not hurry the copies."""

    def __init__(self, stream: DelayedStream) -> None:
        self._stream, self._made = stream, threading.Event()

    def wait(self) -> None:
        self._stream.run()
        self._made.set()

    def synchronize(self) -> None:
        if threading.current_thread() is threading.main_thread():
            self._stream.run()
        else:
            assert self._made.wait(60), "nobody waited for the copies before the update"
