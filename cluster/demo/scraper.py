"""DOC from cluster/demo/run.py."""

from __future__ import annotations

import threading
import urllib.request
from pathlib import Path


class Scraper:
    """Scrapes the job's Prometheus endpoint while it runs and keeps the last answer, as a Prometheus server would."""

    def __init__(self, address_file: Path, output: Path, every: float = 0.2) -> None:
        self.address_file, self.output, self.every = address_file, output, every
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def __enter__(self) -> Scraper:
        self.address_file.unlink(missing_ok=True)
        self._thread.start()
        return self

    def _loop(self) -> None:
        while not self._stop.wait(self.every):
            try:
                address = self.address_file.read_text().strip()
                with urllib.request.urlopen(f"http://{address}/metrics", timeout=2) as answer:
                    text = answer.read().decode()
            except OSError:
                continue  # Not serving yet, or between two runs: the next round asks again.
            if "videoar_train_step " in text:
                self.output.write_text(text)

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
