"""Peak memory and bytes of this process and those below it."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType

import psutil


def peak_bytes() -> int:
    """Return the most memory that this process had resident."""
    # Not ru_maxrss: a new process inherits it from the one that started it.
    return int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0]) * 1024


def bytes_moved() -> int:
    """Return the bytes that this process has read and written."""
    fields = dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())
    return int(fields["rchar"]) + int(fields["wchar"])


class Workers:
    """Largest resident size of one process below this one, sampled, and the CPU seconds of all of them."""

    def __init__(self) -> None:
        self.peak, self._stop = 0, threading.Event()
        self._spent: dict[int, float] = {}
        self._thread = threading.Thread(target=self._watch, daemon=True)

    @property
    def cpu(self) -> float:
        """CPU seconds of the processes below this one."""
        return sum(self._spent.values())

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            for process in psutil.Process().children(recursive=True):
                try:
                    if "ray::" in " ".join(process.cmdline()):
                        memory = process.memory_info()
                        # What is mapped from files belongs to the page cache.
                        self.peak = max(self.peak, memory.rss - memory.shared)
                        times = process.cpu_times()
                        self._spent[process.pid] = times.user + times.system
                except psutil.NoSuchProcess:
                    continue

    def __enter__(self) -> Workers:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
