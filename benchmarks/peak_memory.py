"""Wall time and peak memory of a command and everything it starts, daemons included.

    python benchmarks/peak_memory.py make demo

Sums the proportional set size (shared pages counted once) of all processes that carry this run's mark in their
environment, every half second. Last line: one JSON object.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
import uuid
from pathlib import Path

MARK = "VIDEOAR_PEAK_MEMORY_RUN"


def marked_bytes(mark: bytes) -> int:
    total = 0
    for folder in Path("/proc").iterdir():
        if not folder.name.isdigit():
            continue
        try:
            if mark not in (folder / "environ").read_bytes():
                continue
            for line in (folder / "smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
        except OSError:
            continue  # It ended between the listing and the reading.
    return total


def main() -> int:
    if len(sys.argv) < 2:
        print(__doc__, file=sys.stderr)
        return 2
    mark = uuid.uuid4().hex
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.5):
            peak = max(peak, marked_bytes(mark.encode()))

    thread = threading.Thread(target=watch)
    thread.start()
    began = time.monotonic()
    code = subprocess.run(sys.argv[1:], env={**os.environ, MARK: mark}, check=False).returncode
    seconds = time.monotonic() - began
    done.set()
    thread.join()
    name = " ".join(sys.argv[1:])
    print(json.dumps({"name": name, "exit": code, "seconds": round(seconds, 1), "peak_gb": round(peak / 1e9, 2)}))
    return code


if __name__ == "__main__":
    sys.exit(main())
